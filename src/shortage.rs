//! Resources that this process can run out of when it opens a socket or writes to one. The peer is not the cause.

use std::{fmt, io};

use rustix::io::Errno;

/// A resource of this process or machine that has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shortage {
    /// File descriptors, of the process (`EMFILE`) or of the machine (`ENFILE`).
    Descriptors,
    /// Memory of the kernel for sockets (`ENOBUFS`, `ENOMEM`).
    Memory,
    /// Local ports for connections to that address (`EADDRNOTAVAIL`).
    Ports,
}

impl Shortage {
    /// Returns the shortage that caused `error`, if one did.
    pub fn of(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::MFILE | Errno::NFILE => Some(Self::Descriptors),
            Errno::NOBUFS | Errno::NOMEM => Some(Self::Memory),
            Errno::ADDRNOTAVAIL => Some(Self::Ports),
            _ => None,
        }
    }

    /// Returns the name in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Descriptors => "no_descriptors",
            Self::Memory => "no_memory",
            Self::Ports => "no_ports",
        }
    }

    /// Returns what an operator can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Descriptors => "raise the limit of open files (ulimit -n, LimitNOFILE) or lower max_connections",
            Self::Memory => "the kernel has no memory for sockets: look at the container's memory and net.ipv4.tcp_mem",
            Self::Ports => "widen net.ipv4.ip_local_port_range",
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "no file descriptor is left",
            Self::Memory => "no memory for a socket is left",
            Self::Ports => "no local port is left",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_this_machine_are_distinguished_from_those_of_the_peer() {
        let of = |errno: Errno| Shortage::of(&io::Error::from(errno));
        for errno in [Errno::MFILE, Errno::NFILE] {
            assert_eq!(of(errno), Some(Shortage::Descriptors));
        }
        for errno in [Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(of(errno), Some(Shortage::Memory));
        }
        assert_eq!(of(Errno::ADDRNOTAVAIL), Some(Shortage::Ports));
        for errno in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::TIMEDOUT] {
            assert_eq!(of(errno), None, "{errno}");
        }
        assert_eq!(Shortage::of(&io::ErrorKind::TimedOut.into()), None, "an error without a number");
    }
}
