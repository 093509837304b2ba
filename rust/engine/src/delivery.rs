//! What the engine does with mail: connections to take over, new settings, questions, orders.
//!
//! Mail is rare beside queries. Whatever does not fit is dropped with a line for the operator, and
//! its descriptors are closed. How mail travels is `post.rs`; what it says is `mail.rs`. Next on
//! the path: `settings.rs`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use proxy_core::event::{Event, Level};
use proxy_core::sink::Gone;

use crate::driver::{Completion, Driver};
use crate::engine::{Engine, sink, tell};
use crate::listen::Listener;
use crate::mail::{self, Mail, Order};
use crate::net;
use crate::protocol::Protocol;
use crate::settings::{self, StartError};

impl<P: Protocol, D: Driver> Engine<P, D> {
    /// Deals with one mail. Its descriptors are adopted or closed.
    pub(crate) fn handle_mail(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) {
        // Any mail may have taken the place of a poke in a full inbox.
        self.look = true;
        if mail::brings_client(bytes) {
            // Whoever passed it on has counted it already; if it is not admitted that is undone.
            self.counted += 1;
        }
        match mail::decode(bytes, fds.len()) {
            Ok(mail) => self.obey(mail, fds),
            Err(reason) => {
                self.log(Level::Warning, format!("mail dropped: {reason}"));
            }
        }
        self.count_clients();
    }

    fn obey(&mut self, mail: Mail<'_>, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        match (mail, fds.next(), fds.next()) {
            (Mail::Connection(bytes), socket, None) => self.take_over(bytes, socket),
            (Mail::Client { unix }, Some(socket), None) => {
                let peer = net::peer(&socket, unix);
                // It was passed on once already; a worker that ends has no other choice.
                if !self.stopping || !self.pass_on(&socket, peer) {
                    self.admit(socket, peer);
                }
            }
            (Mail::Epoch { epoch, listeners }, Some(memory), first) => {
                let sockets = first.into_iter().chain(fds);
                let listeners = listeners.into_iter().zip(sockets).collect();
                if let Err(why) = self.change_settings(epoch, memory, listeners) {
                    let text = format!("settings of epoch {epoch} not taken over: {why}");
                    self.log(Level::Error, text);
                }
            }
            (Mail::Show(what), Some(memory), Some(_done)) => {
                let mut answer = Vec::new();
                self.core.show(what, self.now, &mut answer);
                self.note_failure(File::from(memory).write_all(&answer));
            }
            (Mail::Order(order), Some(answer), None) => {
                let ended = self.carry_out(&order);
                if let Some(ended) = ended {
                    self.note_failure(write!(File::from(answer), "{ended}"));
                }
            }
            // A poke: every mail has the page looked at. Other counts do not pass `decode`.
            _ => {}
        }
    }

    /// Has the core take a connection from another worker. Without a socket (this process was out
    /// of descriptors) it hears at once that the connection is lost.
    fn take_over(&mut self, bytes: &[u8], socket: Option<OwnedFd>) {
        let mut sink = sink!(self, None);
        let conn = self.core.handle_mail(bytes, self.now, &mut sink);
        match (conn, socket) {
            (Some(conn), Some(socket)) => {
                self.driver.adopt(conn, socket);
                self.core.handle_adopted(conn, self.now, &mut sink!(self, None));
            }
            (Some(conn), None) => {
                // Nobody has seen the other side's end.
                let lost: Completion<D::Chunk> = Completion::Gone(conn, Gone::Unreachable);
                tell(&mut self.core, &lost, self.now, &mut sink!(self, None));
                self.log(Level::Warning, "a connection passed on is lost: no descriptors".into());
            }
            (None, _) => {}
        }
        self.driver.submit(None);
    }

    /// Takes new settings and listeners over and acknowledges them; older ones than those in force
    /// change nothing.
    fn change_settings(
        &mut self,
        epoch: u64,
        memory: OwnedFd,
        listeners: Vec<((u32, bool), OwnedFd)>,
    ) -> Result<(), StartError> {
        if epoch <= self.place.epoch {
            return Ok(());
        }
        let config = settings::load(memory, self.place.parse)?;
        let listeners = listeners
            .into_iter()
            .map(|((id, unix), socket)| Ok((id, Listener::new(socket, unix)?)))
            .collect::<io::Result<Vec<_>>>()?;
        if !self.stopping {
            self.driver.set_listeners(listeners)?;
        }
        self.place.epoch = epoch;
        self.place.shared.passwords.keep(epoch, &config);
        let mut sink = sink!(self, None);
        self.core.handle_settings(config, epoch, self.now, &mut sink);
        self.driver.submit(None);
        self.place.ledger.set_epoch(epoch);
        Ok(())
    }

    /// Ends clients; tells how many, or nothing if the order is unknown.
    fn carry_out(&mut self, order: &Order<'_>) -> Option<u32> {
        let mut sink = sink!(self, None);
        let ended = match *order {
            Order::KillDatabase(name) => Some(self.core.handle_kill(name, self.now, &mut sink)),
            Order::KillClient(id) => Some(self.core.kill_client(id, self.now, &mut sink)),
            Order::Unknown => None,
        };
        self.driver.submit(None);
        ended
    }

    /// Whoever asked may have gone, which is no fault of ours; it is told all the same.
    fn note_failure(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.log(Level::Info, format!("an answer was not delivered: {error}"));
        }
    }

    fn log(&mut self, level: Level, text: String) {
        self.place.events.send(Event::Log { level, text });
    }
}
