//! The signals that the process handles: the first SIGTERM or SIGINT drains it, a second one ends it, and SIGHUP
//! reloads the configuration.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// Receives the signals that end the process, from the moment this value is created.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

/// Receives SIGHUP, which reloads the configuration. Without a handler SIGHUP would end the process.
#[derive(Debug)]
pub struct Hangups(unix::Signal);

/// A signal that ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM, sent by systemd and by kubelets.
    Terminate,
    /// SIGINT, sent by Control-C.
    Interrupt,
}

impl Ending {
    /// Exit code of a process that this signal ended: 128 plus the signal's number, as shells have it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Terminate => 128 + 15,
            Self::Interrupt => 128 + 2,
        }
    }

    /// Name of the signal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }
}

impl Signals {
    /// Starts to handle the signals; from now on they no longer end the process by themselves.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves at the next signal. Cancel safe: no signal is lost.
    pub async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.terminate.recv() => Ending::Terminate,
            _ = self.interrupt.recv() => Ending::Interrupt,
        }
    }
}

impl Hangups {
    /// Starts to handle SIGHUP.
    pub fn listen() -> io::Result<Self> {
        Ok(Self(unix::signal(SignalKind::hangup())?))
    }

    /// Resolves at the next SIGHUP; several that arrive together count as one. Cancel safe: no signal is lost.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
