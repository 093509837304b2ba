//! Handing connections to other workers with the epoll driver, and taking mail.
//!
//! A pass is tried once, behind the sends of its call: either everything has gone out and the inbox
//! takes the socket, or the connection stays. Reading cannot come between, because nothing is read
//! before the answer has been told. What a mail says is `mail.rs`'s affair. Next on the path:
//! `post.rs`.

use std::os::fd::AsFd;

use ledger::WorkerId;
use proxy_core::event::{Event, Level};
use proxy_core::ids::Conn;

use crate::chunk::Buffer;
use crate::conn::Flags;
use crate::driver::Completion;
use crate::epoll::{Epoll, Work};
use crate::notes::Note;
use crate::post::{Incoming, Post};

/// A connection that shall go to another worker.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) conn: Conn,
    pub(crate) to: WorkerId,
    pub(crate) mail: Vec<u8>,
}

impl Epoll {
    /// Hands over what the call that has just ended asked for.
    pub(crate) fn carry_out_passes(&mut self) {
        for Pass { conn, to, mail } in std::mem::take(&mut self.passes) {
            // It may have been closed later in the same call.
            let Some(socket) = self.table.get(conn) else { continue };
            let open = !socket.flags.any(Flags::BROKEN | Flags::CONNECTING);
            let ready = open && socket.spill.is_none();
            let passed = ready && self.post.send(to, &mail, Some(socket.fd.as_fd()));
            if passed {
                self.counters.passes += 1;
                self.freed = true;
                if let Some(socket) = self.table.remove(conn) {
                    // The other worker keeps the connection open: epoll would go on watching it.
                    self.poller.remove(&socket.fd);
                }
            }
            self.notes.push_back(Note::Passed(conn, passed));
        }
    }

    /// One step: a mail at most.
    pub(crate) fn take_mail(&mut self, left: u8, hangup: bool) -> Option<Completion<Buffer>> {
        let left = left.checked_sub(1)?;
        match take_mail(&mut self.post, hangup) {
            Taken::Nothing => None,
            Taken::Last(notice) => {
                // Its end would be reported for ever.
                self.poller.remove(self.post.fd());
                Some(notice)
            }
            Taken::One(completion) => {
                self.work = Some(Work::Mail { left, hangup });
                self.counters.mails += u64::from(matches!(completion, Completion::Mail(..)));
                Some(completion)
            }
        }
    }
}

/// What a look into the inbox has brought.
pub(crate) enum Taken<C> {
    /// A mail, or that one was thrown away; there may be more.
    One(Completion<C>),
    /// No mail waits.
    Nothing,
    /// Nobody can write to the inbox any more.
    Last(Completion<C>),
}

/// Takes a mail from the inbox; `hangup` says that its other ends are closed.
pub(crate) fn take_mail<C>(post: &mut Post, hangup: bool) -> Taken<C> {
    let notice = |level, text: &str| Completion::Notice(Event::Log { level, text: text.into() });
    match post.receive() {
        Incoming::Mail(bytes, fds) if !(bytes.is_empty() && hangup) => {
            Taken::One(Completion::Mail(bytes, fds))
        }
        Incoming::TooLong => Taken::One(notice(Level::Warning, "mail dropped: it is too long")),
        Incoming::Empty => Taken::Nothing,
        Incoming::Broken | Incoming::Mail(..) => {
            Taken::Last(notice(Level::Error, "the inbox has ended"))
        }
    }
}
