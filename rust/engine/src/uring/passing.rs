//! Handing connections to other workers with the io_uring driver.
//!
//! The kernel may be receiving ahead: that is ended first, and what has come by then makes the pass
//! fail. So does whatever the peer has not taken when the sends of the turn are over. A client that
//! has ended goes all the same, as one does that asks for a cancel and closes at once: whoever has
//! it then sees its end, too. Next on the path: `post.rs`.

use std::os::fd::AsFd;

use ledger::WorkerId;
use proxy_core::ids::Conn;

use super::socket::{Flags, SocketId};
use super::{Uring, Work};
use crate::notes::Note;

/// A connection that shall go to another worker.
#[derive(Debug)]
pub(crate) struct Handover {
    id: SocketId,
    to: WorkerId,
    mail: Vec<u8>,
    /// What was queued has been sent as far as it goes, and the receiving was told to end.
    pub(crate) tried: bool,
}

impl Uring {
    pub(super) fn start_pass(&mut self, conn: Conn, to: WorkerId, mail: &[u8]) {
        let Some((id, socket)) = self.find(conn) else { return };
        socket.flags.set(Flags::PASSING);
        self.passes.push(Handover { id, to, mail: mail.to_vec(), tried: false });
        self.mark(id);
    }

    /// Decides what can be decided; tells whether that was anything.
    pub(super) fn decide_passes(&mut self) -> bool {
        let before = self.passes.len();
        for pass in std::mem::take(&mut self.passes) {
            let Some(socket) = self.sockets.get(pass.id) else { continue };
            let flags = socket.flags;
            if flags.any(Flags::CLOSED) {
                // It is not answered.
                continue;
            }
            if !pass.tried || flags.any(Flags::ARMED | Flags::WATCHED) {
                self.passes.push(pass);
                continue;
            }
            self.decide(&pass);
        }
        self.passes.len() < before
    }

    fn decide(&mut self, pass: &Handover) {
        let Some(socket) = self.sockets.get_mut(pass.id) else { return };
        const NOT: u32 = Flags::BROKEN | Flags::CONNECTING;
        let conn = socket.conn;
        let lives = matches!(conn, Conn::Client(_)) || !socket.flags.any(Flags::ENDED);
        let told = socket.held.as_ref().is_none_or(|held| held.bytes.is_empty());
        let ready = !socket.flags.any(NOT) && lives && told && socket.queue.bytes == 0;
        socket.flags.clear(Flags::PASSING);
        let passed = ready && self.post.send(pass.to, &pass.mail, Some(socket.fd.as_fd()));
        if passed {
            self.counters.passes += 1;
            self.table.remove(conn);
            self.retire(pass.id);
        } else {
            self.work.push_back(Work::Held(pass.id));
            self.mark(pass.id);
        }
        self.notes.push_back(Note::Passed(conn, passed));
    }
}
