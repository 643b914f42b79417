//! What was made of files, kept until other files can be used: looked at now and then, and whenever someone asks.

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

/// Files that are just being replaced are read again after this time, so often: a certificate may be there before its key.
const PAUSE: Duration = Duration::from_millis(100);
const ATTEMPTS: u32 = 10;

/// What can be made of files.
pub(super) trait Source: Clone + Send + Sync + 'static {
    /// What is made of them.
    type Made: Send + Sync + 'static;
    /// What they hold.
    type Files;

    /// How often the files are to be looked at.
    fn interval(&self) -> Option<Duration>;
    fn read(&self) -> Result<Self::Files, TlsError>;
    fn hash_into(files: &Self::Files, hash: &mut Xxh3);
    fn make(&self, files: &Self::Files) -> Result<Made<Self::Made>, TlsError>;
}

/// What was made of files, and how long its certificates hold.
pub(super) struct Made<T> {
    pub(super) value: Arc<T>,
    pub(super) certificates: Vec<Certificate>,
    /// What else is worth a line: a key that others may read, authorities that do not hold.
    pub(super) others: Vec<Warning>,
}

/// How long the certificates of one file hold.
pub(super) struct Certificate {
    /// The key of the configuration that names the file.
    pub(super) key: &'static str,
    /// The metric's label `role`.
    pub(super) role: &'static str,
    pub(super) path: PathBuf,
    pub(super) validity: Validity,
}

/// Something made of files, replaced whole. Cloning shares it.
pub(super) struct Kept<S: Source>(Arc<Inner<S>>);

struct Inner<S: Source> {
    owner: Arc<str>,
    current: ArcSwap<S::Made>,
    /// Taken by whoever reads files, on a blocking thread, and by nobody else.
    state: Mutex<State<S>>,
    reloaded: Counter,
    failed: Counter,
    /// Held, so that they stay as long as the certificates are in use.
    expiry: Mutex<Vec<Gauge>>,
}

struct State<S> {
    source: S,
    /// The content of what is in force.
    hash: u128,
    /// What was complained about last: once is enough.
    complaint: Option<TlsError>,
}

/// What was just made of files with this hash.
struct Fresh<S: Source> {
    hash: u128,
    made: Made<S::Made>,
}

/// What became of a look at files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// They hold what they held.
    Unchanged,
    /// Handshakes from now on have what they hold.
    Taken,
    /// They cannot be used: what was in force stays.
    Refused(TlsError),
}

/// Something that can be made again of its files.
pub trait Reload: Send + Sync {
    /// The listener or pool.
    fn owner(&self) -> Arc<str>;

    /// How often the files are to be looked at; `None` is never.
    fn interval(&self) -> Option<Duration>;

    /// Looks at the files. It blocks, for a second if they don't fit each other.
    fn reload(&self) -> Reloaded;
}

/// All that can be made again of their files: every listener's and pool's TLS. Cloning shares the list.
#[derive(Clone, Default)]
pub struct Reloads(Arc<Mutex<Vec<Weak<dyn Reload>>>>);

impl Reloads {
    /// Adds one for as long as it lives.
    pub fn add(&self, one: &Arc<dyn Reload>) {
        let mut all = self.lock();
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(one));
    }

    /// Looks at all files now, and says what became of each listener's and pool's.
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

/// Looks at the files now and then until the tasks drain or nobody uses what is made of them.
pub(super) fn watch(one: &Arc<dyn Reload>, tasks: &Tasks) {
    let one = Arc::downgrade(one);
    let until = tasks.clone();
    tasks.spawn(async move {
        loop {
            // Other settings may ask for it later.
            let Some(interval) = one.upgrade().map(|one| one.interval()) else { return };
            tokio::select! {
                // Whoever drains shakes no more hands: a drain is not to wait for this.
                () = until.drained() => return,
                // Replicas that share a disk are not to read it together.
                () = tokio::time::sleep(interval.unwrap_or(RELOAD_INTERVAL).mul_f64(0.9 + 0.2 * fastrand::f64())) => {}
            }
            let Some(one) = one.upgrade() else { return };
            if interval.is_some() {
                // It logs and counts what it finds.
                drop(tokio::task::spawn_blocking(move || one.reload()).await);
            }
        }
    });
}

// === impl Kept ===

impl<S: Source> Kept<S> {
    /// Reads the files for the first time.
    pub(super) fn load(owner: &str, source: S) -> Result<Self, TlsError> {
        let Fresh { hash, made } = Fresh::of(&source)?;
        let owner: Arc<str> = owner.into();
        let counted =
            |result: &'static str| counter!(TLS_RELOADS_TOTAL, "owner" => Arc::clone(&owner), "result" => result);
        let (reloaded, failed) = (counted("taken"), counted("refused"));
        let expiry = Mutex::new(say(&owner, &made));
        let state = Mutex::new(State { source, hash, complaint: None });
        Ok(Self(Arc::new(Inner { owner, current: ArcSwap::new(made.value), state, reloaded, failed, expiry })))
    }

    /// What holds for the next handshake.
    pub(super) fn current(&self) -> Arc<S::Made> {
        self.0.current.load_full()
    }

    pub(super) fn as_reload(&self) -> Arc<dyn Reload> {
        Arc::clone(&self.0) as Arc<dyn Reload>
    }

    /// Takes other settings, if their files can be used.
    pub(super) fn replace(&self, source: S) -> Result<(), TlsError> {
        let Fresh { hash, made } = Fresh::of(&source)?;
        let mut state = self.0.lock();
        *state = State { source, hash, complaint: None };
        self.0.take(made);
        Ok(())
    }
}

impl<S: Source> Clone for Kept<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Source> fmt::Debug for Kept<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("owner", &self.0.owner).finish_non_exhaustive()
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
            match Fresh::unless(&state.source, state.hash) {
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
            Ok(Some(Fresh { hash, made })) => {
                state.hash = hash;
                state.complaint = None;
                self.take(made);
                self.reloaded.increment(1);
                tracing::info!(owner = %self.owner, "certificates were replaced: new connections have the new ones");
                Reloaded::Taken
            }
            Err(error) => {
                if state.complaint.as_ref() != Some(&error) {
                    self.failed.increment(1);
                    tracing::error!(
                        owner = %self.owner, key = error.key, %error,
                        "files of a tls section changed and cannot be used: the old ones stay in force"
                    );
                    state.complaint = Some(error.clone());
                }
                Reloaded::Refused(error)
            }
        }
    }
}

impl<S: Source> Inner<S> {
    fn take(&self, made: Made<S::Made>) {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner) = say(&self.owner, &made);
        self.current.store(made.value);
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Fresh<S> {
    fn of(source: &S) -> Result<Self, TlsError> {
        let files = source.read()?;
        Ok(Self { hash: hash::<S>(&files), made: source.make(&files)? })
    }

    /// `None` if the files still have the hash `known`.
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
    /// What is worth a line: certificates that hold no longer, or not yet, and a key that others may read.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        // Of authorities each is spoken of by its name.
        let own = self.certificates.iter().filter(|certificate| !matches!(certificate.role, "ca" | "client_ca"));
        let certificates = own.filter_map(|certificate| {
            let message = certificate.validity.complaint()?;
            Some(Warning { key: certificate.key, path: certificate.path.clone(), message })
        });
        certificates.chain(self.others.iter().cloned()).collect()
    }
}

/// Says what there is to say of files that are in use from now on; hands back their certificates' series.
fn say<T>(owner: &Arc<str>, made: &Made<T>) -> Vec<Gauge> {
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
