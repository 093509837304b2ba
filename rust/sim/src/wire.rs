//! One connection: a byte pipe in each direction that cuts anywhere, stalls and breaks, and the
//! messages in its bytes.
//!
//! It knows no protocol beyond message heads. Next on the path: `net.rs`, the workers' side of all
//! wires.

use std::collections::VecDeque;

use pgwire::frame::Head;
use proxy_core::ids::Conn;

use crate::rng::Rng;

/// How a peer ended its side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// FIN: all bytes sent before arrive.
    Fin,
    /// RST: bytes on their way are lost.
    Reset,
}

/// One connection between a peer (a client, a server) and the core.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Sent by the peer, not yet read by the core.
    pub(crate) to_core: VecDeque<u8>,
    /// The peer ended its side, behind `to_core`.
    pub(crate) to_core_end: Option<End>,
    /// Sent by the core, not yet read by the peer.
    pub(crate) to_peer: VecDeque<u8>,
    /// The core ended its side, behind `to_peer`.
    pub(crate) to_peer_fin: bool,
    /// Whose connection it is: a worker and that one's core's name of it. None while it is in the
    /// mail, and once the core has closed it or was told of its end.
    pub(crate) owner: Option<(usize, Conn)>,
    /// The core's side is closed for good: what the peer still sends meets nobody.
    pub(crate) closed: bool,
    /// The core has asked to hand it over: nothing is read from it.
    pub(crate) leaving: bool,
    /// The core does not read now.
    pub(crate) paused: bool,
    /// The core was told that `to_peer` is long.
    pub(crate) congested: bool,
    /// FIN has been handed to the core.
    pub(crate) eof_told: bool,
}

impl Wire {
    /// Takes a random part of what lies ahead, at least a byte.
    pub(crate) fn cut(queue: &mut VecDeque<u8>, rng: &mut Rng) -> Vec<u8> {
        let most = queue.len();
        let bytes = match rng.below(10) {
            0 => 1,
            1..=3 => 1 + rng.index(most.min(16)),
            4 => 1 + rng.index(most),
            _ => most,
        };
        queue.drain(..bytes.min(8192).min(most)).collect()
    }

    /// Whether the core has bytes or an end to read.
    #[must_use]
    pub(crate) fn has_input(&self) -> bool {
        if self.owner.is_none() || self.leaving {
            return false;
        }
        if self.to_core_end == Some(End::Reset) {
            return true;
        }
        !self.paused && (!self.to_core.is_empty() || self.to_core_end.is_some() && !self.eof_told)
    }

    /// The core's side closes; what was sent before still arrives.
    pub(crate) fn close(&mut self) {
        self.to_peer_fin = true;
        self.closed = true;
        self.owner = None;
    }

    /// Comes out of the mail: the receiver knows nothing of what was between it and the sender.
    pub(crate) fn arrive(&mut self) {
        self.leaving = false;
        self.paused = false;
        self.eof_told = false;
    }

    /// Sends FIN: the peer sends nothing more.
    pub(crate) fn finish(&mut self) {
        self.to_core_end.get_or_insert(End::Fin);
    }

    /// Breaks the connection: what was on its way is lost on both sides.
    pub(crate) fn reset(&mut self) {
        self.to_core.clear();
        self.to_peer.clear();
        self.to_core_end = Some(End::Reset);
    }
}

/// A typed message: its tag and body.
pub(crate) type Message = (u8, Vec<u8>);

/// Takes the first whole message off a buffer; an error if its head is no head.
pub(crate) fn take_message(buffer: &mut Vec<u8>) -> Result<Option<Message>, String> {
    match Head::read(buffer) {
        Err(malformed) => Err(malformed.0.to_owned()),
        Ok(Some(head)) if buffer.len() >= head.total() => {
            let rest = buffer.split_off(head.total());
            let message = std::mem::replace(buffer, rest);
            Ok(Some((head.tag, message[5..].to_vec())))
        }
        Ok(_) => Ok(None),
    }
}

/// The bytes of a message.
#[must_use]
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}
