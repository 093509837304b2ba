//! Sockets: making, accepting and connecting them, and what their errors mean.
//!
//! All are non-blocking and close-on-exec. Options that a socket cannot have are no reason to lose
//! it. Next on the path: `conn.rs`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use proxy_core::sink::{Address, Gone, Peer};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType,
    acceptfrom_with, connect, getpeername, getsockname, recv, socket_with, sockopt,
};

use crate::limits::{KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES, KEEPALIVE_SPREAD_S};

const SOCKET_FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// Accepts one connection; it inherits the listener's options (tcp(7), socket(7)).
///
/// # Errors
/// As `accept4(2)`.
pub(crate) fn accept(listener: impl AsFd, unix: bool) -> Result<(OwnedFd, Peer), Errno> {
    let (fd, address) = acceptfrom_with(listener, SOCKET_FLAGS)?;
    Ok((fd, to_peer(address, unix)))
}

/// Where the client of a socket comes from that another process has accepted.
pub(crate) fn peer(fd: impl AsFd, unix: bool) -> Peer {
    to_peer(getpeername(fd).ok().flatten(), unix)
}

fn to_peer(address: Option<SocketAddrAny>, unix: bool) -> Peer {
    if unix {
        return Peer::Unix;
    }
    let address = address.and_then(|any| SocketAddr::try_from(any).ok());
    // A peer that is gone already may have no address; its first receive says so.
    let ip = address.map_or_else(|| std::net::Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip());
    Peer::Tcp(ip.to_canonical())
}

/// Starts a connection. `true`: it is made already.
///
/// # Errors
/// Why there can be none; a Unix socket tells at once.
pub(crate) fn start_connect(address: &Address) -> Result<(OwnedFd, bool), Errno> {
    let family = match address {
        Address::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
        Address::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
        Address::Unix(_) => AddressFamily::UNIX,
    };
    let fd = socket_with(family, SocketType::STREAM, SOCKET_FLAGS, None)?;
    let started = match address {
        Address::Tcp(address) => {
            set_tcp_options(&fd);
            set_loopback_options(&fd, address);
            connect(&fd, address)
        }
        Address::Unix(path) => connect(&fd, &SocketAddrUnix::new(path.as_str())?),
    };
    match started {
        Ok(()) => Ok((fd, true)),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok((fd, false)),
        Err(error) => Err(error),
    }
}

/// What became of a connection that was started.
///
/// # Errors
/// Why it was not made.
pub(crate) fn finish_connect(fd: impl AsFd) -> Result<(), Errno> {
    sockopt::socket_error(fd)?
}

/// The error that is pending on a socket, if any; asking clears it.
pub(crate) fn pending_error(fd: impl AsFd) -> Option<Errno> {
    match sockopt::socket_error(fd) {
        Ok(Ok(())) => None,
        Ok(Err(error)) | Err(error) => Some(error),
    }
}

/// How often in a row the kernel has sent the same bytes again without an answer; 0 for sockets
/// that are not TCP.
pub(crate) fn retransmits(fd: impl AsFd) -> u8 {
    // The head of `struct tcp_info` (linux/tcp.h): state, congestion state, retransmits. The kernel
    // copies no more than is asked for.
    let mut head = [0_u8; 4];
    let mut len = head.len() as libc::socklen_t;
    // SAFETY: both pointers are to live memory, and `len` is the size of the first's.
    #[allow(unsafe_code)]
    let outcome = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            head.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if outcome == 0 { head[2] } else { 0 }
}

/// Receives once; `Ok(0)` is end of file.
///
/// # Errors
/// As `recv(2)`; never EINTR.
#[inline]
pub(crate) fn receive(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match recv(fd.as_fd(), &mut *buffer, RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            Ok((received, _)) => return Ok(received),
            Err(error) => return Err(error),
        }
    }
}

/// Why an attempt to connect failed, in the core's words.
pub(crate) fn refusal(error: Errno) -> Gone {
    match error {
        Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN => {
            Gone::Unreachable
        }
        Errno::CONNRESET => Gone::Reset,
        other => Gone::Refused(io::Error::from(other).kind()),
    }
}

/// Why an open connection ended, in the core's words.
pub(crate) fn loss(error: Errno) -> Gone {
    match error {
        Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => Gone::Unreachable,
        _ => Gone::Reset,
    }
}

/// Loopback has no path to be fair on: where BBR is the default, its pacing timers alone cost a
/// tenth of a query's CPU. Reno is always there and does nothing without loss.
fn set_loopback_options(fd: &OwnedFd, address: &SocketAddr) {
    if address.ip().to_canonical().is_loopback() {
        let _ = sockopt::set_tcp_congestion(fd, "reno");
    }
}

/// What a listener's connections inherit.
pub(crate) fn set_listener_options(fd: &OwnedFd) {
    set_tcp_options(fd);
    let address = getsockname(fd).ok().and_then(|any| SocketAddr::try_from(any).ok());
    if let Some(address) = address {
        set_loopback_options(fd, &address);
    }
}

/// Gives a client its own time for the first probe, by its number.
pub(crate) fn spread_keepalive(fd: impl AsFd, number: usize) {
    let later = number as u64 % KEEPALIVE_SPREAD_S;
    let _ = sockopt::set_tcp_keepidle(fd, Duration::from_secs(KEEPALIVE_IDLE_S + later));
}

/// No delay for small messages, and probes that find dead peers. A Unix socket takes none of it.
fn set_tcp_options(fd: &OwnedFd) {
    let _ = sockopt::set_tcp_nodelay(fd, true);
    let _ = sockopt::set_socket_keepalive(fd, true);
    let _ = sockopt::set_tcp_keepidle(fd, Duration::from_secs(KEEPALIVE_IDLE_S));
    let _ = sockopt::set_tcp_keepintvl(fd, Duration::from_secs(KEEPALIVE_INTERVAL_S));
    let _ = sockopt::set_tcp_keepcnt(fd, KEEPALIVE_PROBES);
}
