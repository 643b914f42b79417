//! SIGTERM and SIGINT: the first asks the process to drain, the second ends it. SIGHUP asks for the configuration.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// The signals that end the process, listened to from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

/// SIGHUP: asks the process to read its configuration again. Without this it would end the process.
#[derive(Debug)]
pub struct Hangups(unix::Signal);

/// A signal that ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM: what systemd and kubelets send.
    Terminate,
    /// SIGINT: control-C.
    Interrupt,
}

impl Ending {
    /// What a process that this signal ended exits with: 128 and its number, as shells have it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Terminate => 128 + 15,
            Self::Interrupt => 128 + 2,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }
}

impl Signals {
    /// Begins to listen: the process no longer ends by itself.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves at the next signal. Cancel safety: none is lost.
    pub async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.terminate.recv() => Ending::Terminate,
            _ = self.interrupt.recv() => Ending::Interrupt,
        }
    }
}

impl Hangups {
    /// Begins to listen.
    pub fn listen() -> io::Result<Self> {
        Ok(Self(unix::signal(SignalKind::hangup())?))
    }

    /// Resolves at the next signal; some that come at once are one. Cancel safety: none is lost.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
