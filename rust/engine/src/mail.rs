//! What a mail says: the kinds of datagram that reach a worker's engine, as bytes.
//!
//! The first byte is the kind; numbers are little-endian. The sender is a process of this service,
//! but a mail from an older or a damaged one must do no harm: whatever does not fit is refused with
//! a reason. What the core says to another core (kinds 1 and 2) is its own affair. Next on the
//! path: `delivery.rs`.

use proxy_core::show::Show;

/// Look at the page.
pub(crate) const POKE: u8 = 0;
const SERVER: u8 = 1;
const CANCEL: u8 = 2;
const CLIENT: u8 = 3;
const EPOCH: u8 = 4;
const SHOW: u8 = 5;
const ORDER: u8 = 6;

/// A mail, read.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Mail<'a> {
    /// Another worker or the supervisor changed the page.
    Poke,
    /// A connection for the core, with the core's own bytes (kind included). Comes with 1
    /// descriptor, or with none if it got lost.
    Connection(&'a [u8]),
    /// A client that another worker has accepted. Comes with 1 descriptor.
    Client {
        /// It came through a Unix-domain socket.
        unix: bool,
    },
    /// New settings and listeners. Comes with a descriptor for the settings and one a listener.
    Epoch {
        /// Number of this publication, from 1.
        epoch: u64,
        /// Each listener's id and whether it is a Unix-domain socket.
        listeners: Vec<(u32, bool)>,
    },
    /// A question; the answer goes into the first descriptor, and closing the second ends it.
    Show(Show),
    /// A command; the answer goes into the descriptor.
    Order(Order<'a>),
}

/// What to end.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Order<'a> {
    /// All clients of a database; `*` = of every one.
    KillDatabase(&'a str),
    /// One client, by its number.
    KillClient(u64),
    /// A verb of a later release: nothing happens.
    Unknown,
}

/// The bytes of a mail that passes a client on before its login.
pub(crate) const fn client(unix: bool) -> [u8; 2] {
    [CLIENT, unix as u8]
}

/// Whether this is a mail that passes a client on: its sender has counted the client for us.
pub(crate) fn brings_client(bytes: &[u8]) -> bool {
    bytes.first() == Some(&CLIENT)
}

/// Reads a mail that came with this many descriptors.
///
/// # Errors
/// The sender's fault: what is wrong, for the log.
pub(crate) fn decode(bytes: &[u8], descriptors: usize) -> Result<Mail<'_>, &'static str> {
    let (kind, rest) = bytes.split_first().ok_or("it is empty")?;
    let (mail, needs) = match *kind {
        POKE => (Mail::Poke, 0),
        // Without a descriptor (this process had no room for it) the core must hear of it, too.
        SERVER | CANCEL => (Mail::Connection(bytes), descriptors.min(1)),
        CLIENT => (decode_client(rest)?, 1),
        EPOCH => decode_epoch(rest)?,
        SHOW => (decode_show(rest)?, 2),
        ORDER => (decode_order(rest)?, 1),
        _ => return Err("its kind is unknown"),
    };
    if descriptors == needs { Ok(mail) } else { Err("it has a wrong number of descriptors") }
}

fn decode_client(rest: &[u8]) -> Result<Mail<'static>, &'static str> {
    match rest {
        [unix] => Ok(Mail::Client { unix: *unix != 0 }),
        _ => Err("a passed client has a wrong length"),
    }
}

/// Reads an epoch and how many descriptors it needs.
fn decode_epoch(rest: &[u8]) -> Result<(Mail<'static>, usize), &'static str> {
    const WRONG: &str = "an epoch has a wrong length";
    let (epoch, rest) = rest.split_first_chunk().ok_or(WRONG)?;
    let (count, mut rest) = rest.split_first().ok_or(WRONG)?;
    let mut listeners = Vec::with_capacity(usize::from(*count));
    for _ in 0..*count {
        let ([a, b, c, d, unix], left) = rest.split_first_chunk().ok_or(WRONG)?;
        listeners.push((u32::from_le_bytes([*a, *b, *c, *d]), *unix != 0));
        rest = left;
    }
    if !rest.is_empty() {
        return Err(WRONG);
    }
    let needs = 1 + listeners.len();
    Ok((Mail::Epoch { epoch: u64::from_le_bytes(*epoch), listeners }, needs))
}

fn decode_show(rest: &[u8]) -> Result<Mail<'static>, &'static str> {
    Ok(Mail::Show(match rest {
        [0] => Show::Clients,
        [1] => Show::Servers,
        [2] => Show::Pools,
        [3] => Show::Targets,
        _ => return Err("a question is unknown"),
    }))
}

fn decode_order(rest: &[u8]) -> Result<Mail<'_>, &'static str> {
    let (verb, argument) = rest.split_first().ok_or("an order has no verb")?;
    let argument = std::str::from_utf8(argument).map_err(|_| "an order's argument is no text")?;
    Ok(Mail::Order(match verb {
        0 => Order::KillDatabase(argument),
        1 => Order::KillClient(argument.parse().map_err(|_| "a client's number is no number")?),
        _ => Order::Unknown,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proxy_core::show::Show;

    use super::{Mail, Order, client, decode};

    /// An epoch of number 258 with two listeners.
    const EPOCH: &[u8] = &[4, 2, 1, 0, 0, 0, 0, 0, 0, 2, 7, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1];

    #[test]
    fn each_kind_is_read() {
        assert_eq!(decode(&[0], 0), Ok(Mail::Poke));
        assert_eq!(decode(b"\x01xyz", 1), Ok(Mail::Connection(b"\x01xyz")));
        assert_eq!(decode(b"\x02", 1), Ok(Mail::Connection(b"\x02")));
        assert_eq!(decode(&client(false), 1), Ok(Mail::Client { unix: false }));
        assert_eq!(decode(&client(true), 1), Ok(Mail::Client { unix: true }));
        let listeners = vec![(7, false), (u32::MAX, true)];
        assert_eq!(decode(EPOCH, 3), Ok(Mail::Epoch { epoch: 258, listeners }));
        for (byte, what) in
            [Show::Clients, Show::Servers, Show::Pools, Show::Targets].into_iter().enumerate()
        {
            assert_eq!(decode(&[5, byte as u8], 2), Ok(Mail::Show(what)));
        }
        let order = |bytes| match decode(bytes, 1).unwrap() {
            Mail::Order(order) => order,
            other => panic!("{other:?}"),
        };
        assert_eq!(order(b"\x06\x00*"), Order::KillDatabase("*"));
        assert_eq!(order(b"\x06\x0118446744073709551615"), Order::KillClient(u64::MAX));
        assert_eq!(order(b"\x06\xFF?"), Order::Unknown);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for bytes in [
            &b""[..],
            b"\x07",
            b"\xFF",
            b"\x03",
            b"\x03\x00\x00",
            b"\x05",
            b"\x05\x04",
            b"\x05\x00\x00",
            b"\x06",
            b"\x06\x00\xFF",
            b"\x06\x01",
            b"\x06\x01all",
            b"\x06\x0118446744073709551616",
        ] {
            for descriptors in 0..3 {
                assert!(decode(bytes, descriptors).is_err(), "{bytes:?}");
            }
        }
    }

    #[test]
    fn every_part_of_an_epoch_is_refused() {
        for end in 0..EPOCH.len() {
            for descriptors in 0..4 {
                assert!(decode(&EPOCH[..end], descriptors).is_err(), "{end} bytes");
            }
        }
        let longer = [EPOCH, &[0]].concat();
        assert!(decode(&longer, 3).is_err());
    }

    #[test]
    fn a_wrong_number_of_descriptors_is_refused() {
        for (bytes, needs) in
            [(&[0][..], 0), (b"\x03\x00", 1), (EPOCH, 3), (b"\x05\x00", 2), (b"\x06\x00*", 1)]
        {
            for descriptors in (0..5).filter(|each| *each != needs) {
                assert!(decode(bytes, descriptors).is_err(), "{bytes:?} with {descriptors}");
            }
        }
        assert!(decode(b"\x01x", 0).is_ok() && decode(b"\x01x", 2).is_err());
    }
}
