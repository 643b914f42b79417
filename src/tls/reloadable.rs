//! TLS settings that are built from files and replaced when the files change. If changed files cannot be used, the
//! previous settings stay in use. Files are checked periodically and on request.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::{Counter, Gauge, counter, gauge};
use xxhash_rust::xxh3::Xxh3;

use super::{
    RELOAD_INTERVAL,
    files::{TlsError, Validity, Warning},
};
use crate::{
    lifecycle::Tasks,
    telemetry::metrics::{TLS_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS, TLS_RELOADS_TOTAL},
};

/// The pause between attempts to load files that do not fit each other, since a certificate may be replaced before its
/// key.
const PAUSE: Duration = Duration::from_millis(100);
const ATTEMPTS: u32 = 10;

/// Settings that can be built from files.
pub(super) trait Source: Clone + Send + Sync + 'static {
    /// The settings that are built.
    type Made: Send + Sync + 'static;
    /// The contents of the files.
    type Files;

    /// How often to check the files for changes; `None` for never.
    fn interval(&self) -> Option<Duration>;
    fn read(&self) -> Result<Self::Files, TlsError>;
    fn hash_into(files: &Self::Files, hash: &mut Xxh3);
    fn make(&self, files: &Self::Files) -> Result<Made<Self::Made>, TlsError>;
}

/// Settings built from files, and the validity of their certificates.
pub(super) struct Made<T> {
    pub(super) value: Arc<T>,
    pub(super) certificates: Vec<Certificate>,
    /// Other warnings: a key that others may read, authorities that are not valid.
    pub(super) others: Vec<Warning>,
}

/// The validity of the certificates in one file.
pub(super) struct Certificate {
    /// The configuration key that names the file.
    pub(super) key: &'static str,
    /// The metric label `role`.
    pub(super) role: &'static str,
    pub(super) path: PathBuf,
    pub(super) validity: Validity,
}

/// The current settings built from files; they are replaced as a whole. Clones share them.
pub(super) struct Reloadable<S: Source>(Arc<Inner<S>>);

struct Inner<S: Source> {
    owner: Arc<str>,
    current: ArcSwap<S::Made>,
    /// Locked while files are being loaded, which happens only on blocking threads.
    state: Mutex<State<S>>,
    reloaded: Counter,
    failed: Counter,
    /// The handles are held so that the series exist as long as the certificates are in use.
    expiry: Mutex<Vec<Gauge>>,
}

struct State<S> {
    source: S,
    /// The hash of the contents in use.
    hash: u128,
    /// The last error that was logged, so that it is logged only once.
    complaint: Option<TlsError>,
}

/// Newly built settings, and the hash of the files.
struct Loaded<S: Source> {
    hash: u128,
    made: Made<S::Made>,
}

/// The result of checking files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// The contents have not changed.
    Unchanged,
    /// The new contents are used by handshakes from now on.
    Taken,
    /// The new contents cannot be used; the old ones stay in use.
    Refused(TlsError),
}

/// TLS settings that can be reloaded from their files.
pub trait Reload: Send + Sync {
    /// The name of the listener or pool.
    fn owner(&self) -> Arc<str>;

    /// How often to check the files; `None` for never.
    fn interval(&self) -> Option<Duration>;

    /// Checks the files and loads changed ones. Blocks, up to a second if the files do not fit each other.
    fn reload(&self) -> Reloaded;
}

/// The reloadable TLS settings of all listeners and pools. Clones share the list.
#[derive(Clone, Default)]
pub struct Reloads(Arc<Mutex<Vec<Weak<dyn Reload>>>>);

impl Reloads {
    /// Adds settings, which are listed as long as they exist.
    pub fn add(&self, one: &Arc<dyn Reload>) {
        let mut all = self.lock();
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(one));
    }

    /// Checks all files now, and returns the result for each listener and pool.
    pub async fn now(&self) -> Vec<(Arc<str>, Reloaded)> {
        let all: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
        let looked = tokio::task::spawn_blocking(move || all.iter().map(|one| (one.owner(), one.reload())).collect());
        looked.await.unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<dyn Reload>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloads").field("len", &self.lock().len()).finish()
    }
}

/// Checks the files periodically until the tasks drain or the settings are dropped.
pub(super) fn watch(one: &Arc<dyn Reload>, tasks: &Tasks) {
    let one = Arc::downgrade(one);
    let until = tasks.clone();
    tasks.spawn(async move {
        loop {
            // Continue even without an interval, since a reload of the configuration may set one.
            let Some(interval) = one.upgrade().map(|one| one.interval()) else { return };
            tokio::select! {
                // A draining process makes no more handshakes, and must not wait for this task.
                () = until.drained() => return,
                // The interval is randomised, so that replicas do not read a shared disk at the same time.
                () = tokio::time::sleep(interval.unwrap_or(RELOAD_INTERVAL).mul_f64(0.9 + 0.2 * fastrand::f64())) => {}
            }
            let Some(one) = one.upgrade() else { return };
            if interval.is_some() {
                // `reload` logs and counts the result itself.
                drop(tokio::task::spawn_blocking(move || one.reload()).await);
            }
        }
    });
}

// === impl Reloadable ===

impl<S: Source> Reloadable<S> {
    /// Loads the files for the first time.
    pub(super) fn load(owner: &str, source: S) -> Result<Self, TlsError> {
        let Loaded { hash, made } = Loaded::of(&source)?;
        let owner: Arc<str> = owner.into();
        let counted =
            |result: &'static str| counter!(TLS_RELOADS_TOTAL, "owner" => Arc::clone(&owner), "result" => result);
        let (reloaded, failed) = (counted("taken"), counted("refused"));
        let expiry = Mutex::new(announce(&owner, &made));
        let state = Mutex::new(State { source, hash, complaint: None });
        Ok(Self(Arc::new(Inner { owner, current: ArcSwap::new(made.value), state, reloaded, failed, expiry })))
    }

    /// Returns the settings for the next handshake.
    pub(super) fn current(&self) -> Arc<S::Made> {
        self.0.current.load_full()
    }

    pub(super) fn as_reload(&self) -> Arc<dyn Reload> {
        Arc::clone(&self.0) as Arc<dyn Reload>
    }

    /// Switches to other settings if their files can be loaded.
    pub(super) fn replace(&self, source: S) -> Result<(), TlsError> {
        let Loaded { hash, made } = Loaded::of(&source)?;
        let mut state = self.0.lock();
        *state = State { source, hash, complaint: None };
        self.0.install(made);
        Ok(())
    }
}

impl<S: Source> Clone for Reloadable<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Source> fmt::Debug for Reloadable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloadable").field("owner", &self.0.owner).finish_non_exhaustive()
    }
}

impl<S: Source> Reload for Inner<S> {
    fn owner(&self) -> Arc<str> {
        Arc::clone(&self.owner)
    }

    fn interval(&self) -> Option<Duration> {
        self.lock().source.interval()
    }

    fn reload(&self) -> Reloaded {
        let mut state = self.lock();
        let mut attempt = 1;
        let found = loop {
            match Loaded::unless(&state.source, state.hash) {
                Err(error) if attempt < ATTEMPTS && state.complaint.as_ref() != Some(&error) => {
                    attempt += 1;
                    std::thread::sleep(PAUSE);
                }
                found => break found,
            }
        };
        match found {
            Ok(None) => {
                state.complaint = None;
                Reloaded::Unchanged
            }
            Ok(Some(Loaded { hash, made })) => {
                state.hash = hash;
                state.complaint = None;
                self.install(made);
                self.reloaded.increment(1);
                tracing::info!(owner = %self.owner, "certificates were replaced: new connections use the new ones");
                Reloaded::Taken
            }
            Err(error) => {
                if state.complaint.as_ref() != Some(&error) {
                    self.failed.increment(1);
                    tracing::error!(
                        owner = %self.owner, key = error.key, %error,
                        "files of a tls section changed and cannot be used: the old ones stay in use"
                    );
                    state.complaint = Some(error.clone());
                }
                Reloaded::Refused(error)
            }
        }
    }
}

impl<S: Source> Inner<S> {
    fn install(&self, made: Made<S::Made>) {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner) = announce(&self.owner, &made);
        self.current.store(made.value);
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Loaded<S> {
    fn of(source: &S) -> Result<Self, TlsError> {
        let files = source.read()?;
        Ok(Self { hash: hash::<S>(&files), made: source.make(&files)? })
    }

    /// Loads the files unless their hash is still `known`.
    fn unless(source: &S, known: u128) -> Result<Option<Self>, TlsError> {
        let files = source.read()?;
        let hash = hash::<S>(&files);
        if hash == known { Ok(None) } else { Ok(Some(Self { hash, made: source.make(&files)? })) }
    }
}

fn hash<S: Source>(files: &S::Files) -> u128 {
    let mut hash = Xxh3::new();
    S::hash_into(files, &mut hash);
    hash.digest128()
}

// === impl Made ===

impl<T> Made<T> {
    /// Returns all warnings: certificates that are not valid now, and those in `others`.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        // Authorities have warnings of their own in `others`, by name.
        let own = self.certificates.iter().filter(|certificate| !matches!(certificate.role, "ca" | "client_ca"));
        let certificates = own.filter_map(|certificate| {
            let message = certificate.validity.complaint()?;
            Some(Warning { key: certificate.key, path: certificate.path.clone(), message })
        });
        certificates.chain(self.others.iter().cloned()).collect()
    }
}

/// Logs the warnings about files that are in use from now on, and returns the series of their certificates.
fn announce<T>(owner: &Arc<str>, made: &Made<T>) -> Vec<Gauge> {
    for warning in made.warnings() {
        tracing::warn!(%owner, key = warning.key, "{warning}");
    }
    let expiry = made.certificates.iter().map(|certificate| {
        let labels = [("owner", owner.to_string()), ("role", certificate.role.to_owned())];
        let gauge = gauge!(TLS_CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS, &labels);
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; seconds are far below 2^52")]
        gauge.set(certificate.validity.not_after as f64);
        gauge
    });
    expiry.collect()
}
