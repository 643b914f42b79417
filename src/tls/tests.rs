//! Tests of valid, invalid and replaced files, and of handshakes that succeed or fail with a reason.

#[path = "../../tests/it/pki.rs"]
#[allow(dead_code, reason = "tests of processes use the rest")]
pub(crate) mod pki;

mod mutual;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::pki::Authority;
use super::{client::Client, *};
use crate::telemetry::Recorder;

/// Returns a folder made by [`pki::folder`] that exists as long as the tests run.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            pki::folder(dir.path());
            dir
        })
        .path()
}

/// The folder of one test, its authority, and client and server settings that fit each other.
struct World {
    dir: TempDir,
    authority: Authority,
    server: ServerConfig,
    client: ClientConfig,
}

fn identity(dir: &Path, name: &str) -> Identity {
    Identity { cert_file: dir.join(format!("{name}.crt")), key_file: dir.join(format!("{name}.key")) }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = pki::folder(dir.path());
        let ca = dir.path().join("ca.crt");
        let server = ServerConfig { identity: identity(dir.path(), "server"), ..ServerConfig::default() };
        let client = ClientConfig { ca_file: Some(ca), ..ClientConfig::default() };
        Self { dir, authority, server, client }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mutual(mut self) -> Self {
        self.server.client_ca_file = Some(self.path("ca.crt"));
        self.client.identity = Some(identity(self.dir.path(), "client"));
        self
    }

    fn both(&self) -> (Server, Client) {
        let server = Server::load("test", self.server.clone(), &[b"h2"]).unwrap();
        (server, Client::load("test", self.client.clone()).unwrap())
    }

    /// The results of both sides for a handshake and an exchange of a few bytes after it.
    async fn shake(&self, entry: &str) -> (Result<(), Reason>, Result<(), Reason>) {
        let (server, client) = self.both();
        shake(&server, &client, entry).await
    }
}

async fn shake(server: &Server, client: &Client, entry: &str) -> (Result<(), Reason>, Result<(), Reason>) {
    shake_with(server.current(), client, entry).await
}

async fn shake_with(
    server: Arc<rustls::ServerConfig>,
    client: &Client,
    entry: &str,
) -> (Result<(), Reason>, Result<(), Reason>) {
    let (near, far) = duplex(64 << 10);
    let name = client.name_of(entry).expect("a name");
    let connector = TlsConnector::from(client.current());
    let acceptor = TlsAcceptor::from(server);
    let server = async {
        let mut stream = acceptor.accept(far).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        stream.read_exact(&mut [0; 4]).await?;
        stream.write_all(b"pong").await?;
        stream.flush().await
    };
    let client = async {
        let mut stream = connector.connect(name, near).await?;
        stream.write_all(b"ping").await?;
        stream.flush().await?;
        stream.read_exact(&mut [0; 4]).await.map(drop)
    };
    let (server, client) = tokio::join!(server, client);
    let reason = |result: io::Result<()>| result.map_err(|error| Reason::of_io(&error));
    (reason(server), reason(client))
}

#[tokio::test]
async fn the_name_of_the_entry_is_checked_and_not_its_address() {
    let world = World::new();
    for entry in ["localhost:4317", "collector.test:4317", "127.0.0.1:4317", "[::1]:4317"] {
        assert_eq!(world.shake(entry).await, (Ok(()), Ok(())), "{entry}");
    }
    for entry in ["collector-0.test:4317", "127.0.0.2:4317", "[::2]:4317"] {
        let (_, client) = world.shake(entry).await;
        assert_eq!(client, Err(Reason::BadName), "{entry}");
    }
}

#[tokio::test]
async fn server_name_override_takes_precedence() {
    let mut world = World::new();
    world.client.name = CheckedName::Is("collector.test.".into());
    assert_eq!(world.shake("10.0.0.1:4317").await, (Ok(()), Ok(())));
    world.client.name = CheckedName::Is("other.test".into());
    assert_eq!(world.shake("collector.test:4317").await.1, Err(Reason::BadName));
}

#[tokio::test]
async fn both_sides_can_ask_for_certificates() {
    let world = World::new().mutual();
    assert_eq!(world.shake("localhost:1").await, (Ok(()), Ok(())));
    let mut without = World::new().mutual();
    without.client.identity = None;
    assert_eq!(without.shake("localhost:1").await, (Err(Reason::NoCertificate), Err(Reason::NoCertificate)));
    let stranger = World::new().mutual();
    Authority::new("another").issue(&["localhost"]).write(stranger.dir.path(), "client");
    assert_eq!(stranger.shake("localhost:1").await, (Err(Reason::UnknownCa), Err(Reason::UnknownCa)));
    let late = World::new().mutual();
    late.authority.issue_expired(&["localhost"]).write(late.dir.path(), "client");
    assert_eq!(late.shake("localhost:1").await, (Err(Reason::Expired), Err(Reason::Expired)));
}

#[tokio::test]
async fn an_untrusted_server_is_refused_with_the_reason() {
    let late = World::new();
    late.authority.issue_expired(&["localhost"]).write(late.dir.path(), "server");
    assert_eq!(late.shake("localhost:1").await, (Err(Reason::Expired), Err(Reason::Expired)));
    let mut stranger = World::new();
    Authority::new("another").issue(&["localhost"]).write(stranger.dir.path(), "server");
    assert_eq!(stranger.shake("localhost:1").await, (Err(Reason::UnknownCa), Err(Reason::UnknownCa)));
    stranger.client.insecure_skip_verify = true;
    assert_eq!(stranger.shake("whoever:1").await, (Ok(()), Ok(())));
}

#[tokio::test]
async fn peers_without_a_common_version_are_refused() {
    let mut world = World::new();
    world.server.min_version = TlsVersion::Tls13;
    assert_eq!(world.shake("localhost:1").await, (Ok(()), Ok(())));
    let server = Server::load("test", world.server.clone(), &[b"h2"]).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let (near, far) = duplex(64 << 10);
    let connector = TlsConnector::from(Arc::new(old));
    let name = "localhost".try_into().unwrap();
    let (client, server) = tokio::join!(connector.connect(name, near), TlsAcceptor::from(server.current()).accept(far));
    assert_eq!(Reason::of_io(&server.expect_err("TLS 1.2 must be refused")), Reason::ProtocolVersion);
    assert_eq!(Reason::of_io(&client.expect_err("TLS 1.2 must be refused")), Reason::ProtocolVersion);
}

#[tokio::test]
async fn a_client_without_tls_is_recognised() {
    let world = World::new();
    let server = Server::load("test", world.server.clone(), &[b"h2"]).unwrap();
    let (mut near, far) = duplex(4096);
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let Err(error) = TlsAcceptor::from(server.current()).accept(far).await else { panic!("must fail") };
    assert_eq!(Reason::of_io(&error), Reason::NotTls, "{error}");
    let (near, far) = duplex(4096);
    drop(near);
    let Err(error) = TlsAcceptor::from(server.current()).accept(far).await else { panic!("must fail") };
    assert_eq!(Reason::of_io(&error), Reason::Closed, "{error}");
}

#[test]
fn errors_about_files_name_them_and_say_what_to_do() {
    let world = World::new();
    let complaint = |config: &ServerConfig| config.check().expect_err("bad").to_string();
    let with = |change: &dyn Fn(&mut ServerConfig)| {
        let mut config = world.server.clone();
        change(&mut config);
        let error = config.check().expect_err("bad");
        (error.key, error.to_string().replace(world.dir.path().to_str().unwrap(), "DIR"))
    };
    let missing = with(&|config| config.identity.cert_file = world.path("none.crt"));
    assert_eq!(missing, ("cert_file", "cannot read DIR/none.crt: No such file or directory (os error 2)".into()));
    fs::write(world.path("words"), "not PEM").unwrap();
    assert_eq!(
        with(&|config| config.identity.cert_file = world.path("words")),
        (
            "cert_file",
            "DIR/words holds no certificate in PEM; it should have a line -----BEGIN CERTIFICATE-----".into()
        )
    );
    assert_eq!(
        with(&|config| config.identity.key_file = world.path("server.crt")),
        (
            "key_file",
            "DIR/server.crt holds no private key in PEM; it should have a line -----BEGIN PRIVATE KEY-----".into()
        )
    );
    assert_eq!(
        with(&|config| config.identity.key_file = world.path("client.key")),
        ("key_file", "the key in DIR/client.key does not belong to the first certificate in DIR/server.crt".into())
    );
    assert_eq!(
        with(&|config| config.client_ca_file = Some(world.path("server.key"))).1,
        "DIR/server.key holds no certificate in PEM; it should have a line -----BEGIN CERTIFICATE-----"
    );
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(world.path("locked.key"), locked).unwrap();
    let (_, text) = with(&|config| config.identity.key_file = world.path("locked.key"));
    assert!(text.starts_with("the key in DIR/locked.key is encrypted"), "{text}");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(world.path("broken.crt"), broken).unwrap();
    let mut config = world.server.clone();
    config.identity.cert_file = world.path("broken.crt");
    assert!(complaint(&config).starts_with("cannot use "), "{}", complaint(&config));
}

#[test]
fn messages_contain_nothing_of_a_files_content() {
    let world = World::new();
    let (cert, key) = ["server.crt", "server.key"].map(|name| fs::read_to_string(world.path(name)).unwrap()).into();
    let canary = |text: &str| text.lines().nth(1).unwrap()[..16].to_owned();
    // As text, and as the list of numbers that `Debug` prints for bytes.
    let bytes = |text: &str| text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    type Spoil = fn(&str) -> String;
    let spoils: [(Spoil, &str); 8] = [
        (|text| text.replace('\n', ""), "cannot use FILE: the whole file is one line: its line ends were lost"),
        (|text| text.replace('\n', "\\n"), "cannot use FILE: the whole file is one line: its line ends were lost"),
        (
            |text| text.replacen("-----\n", "-----", 1),
            "cannot use FILE: a line begins with -----BEGIN and does not end with -----",
        ),
        (
            |text| text.split("-----END").next().unwrap().to_owned(),
            "cannot use FILE: a section has no -----END line: its end is missing",
        ),
        (
            |text| text.replacen('\n', "\n!", 1),
            "cannot use FILE: the text between -----BEGIN and -----END is not base64",
        ),
        (|text| text.lines().filter(|line| !line.starts_with('-')).collect(), "FILE holds no "),
        (|text| text.replacen("-----\nM", "-----\nA", 1), "cannot use FILE: "),
        (|text| text.replace("BEGIN ", "BEGIN X ").replace("END ", "END X "), "FILE holds no "),
    ];
    for (spoil, expected) in spoils {
        for (name, text) in [("server.crt", &cert), ("server.key", &key)] {
            fs::write(world.path("server.crt"), &cert).unwrap();
            fs::write(world.path("server.key"), &key).unwrap();
            fs::write(world.path(name), spoil(text)).unwrap();
            let error = world.server.check().expect_err(expected);
            let path = world.path(name);
            let expected = expected.replace("FILE", path.to_str().unwrap());
            assert!(error.to_string().starts_with(&expected), "{error}, not {expected}");
            let said = format!("{error} {error:?} {}", error.unnamed());
            assert!(!error.unnamed().contains(path.to_str().unwrap()), "{said}");
            for canary in [canary(&cert), canary(&key)] {
                assert!(!said.contains(&canary) && !said.contains(&bytes(&canary)), "{canary} in {said}");
            }
        }
    }
}

#[test]
fn a_key_that_every_user_can_read_causes_a_warning() {
    let world = World::new();
    let key = fs::read_to_string(world.path("server.key")).unwrap();
    // Kubernetes mounts Secrets with 0440 or 0640 if a group is set, and with 0644 by default.
    for (mode, warned) in [(0o600, false), (0o440, false), (0o640, false), (0o644, true), (0o604, true), (0o602, true)]
    {
        pki::replace_with_mode(&world.path("server.key"), &key, mode);
        let warnings = world.server.check().expect("usable");
        assert_eq!(!warnings.is_empty(), warned, "{mode:o}: {warnings:?}");
        let text = warnings.iter().map(|one| format!("{} {one}", one.key)).collect::<String>();
        assert!(!warned || text.contains("key_file") && text.contains("every user of this machine can read"), "{text}");
    }
}

#[test]
fn an_expired_certificate_causes_a_warning() {
    let world = World::new();
    assert_eq!(world.server.check(), Ok(Vec::new()));
    world.authority.issue_expired(&["localhost"]).write(world.dir.path(), "server");
    let warnings = world.server.check().expect("usable");
    assert!(
        warnings.len() == 1 && warnings[0].to_string().contains("server.crt: a certificate expired"),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn replaced_files_are_used_from_the_next_handshake_on() {
    let world = World::new();
    let server = Server::load("test", world.server.clone(), &[b"h2"]).unwrap();
    let client = Client::load("test", world.client.clone()).unwrap();
    assert_eq!(server.as_reload().reload(), Reloaded::Unchanged);
    world.authority.issue(&["elsewhere.test"]).write(world.dir.path(), "server");
    assert_eq!(shake(&server, &client, "localhost:1").await, (Ok(()), Ok(())), "the files have not been checked yet");
    assert_eq!(server.as_reload().reload(), Reloaded::Taken);
    assert_eq!(shake(&server, &client, "elsewhere.test:1").await, (Ok(()), Ok(())));
    let reloads = Reloads::default();
    reloads.add(&server.as_reload());
    reloads.add(&client.as_reload());
    let other = Authority::new("another");
    pki::replace(&world.path("ca.crt"), &other.pem);
    let found = reloads.now().await;
    assert_eq!(found, [("test".into(), Reloaded::Unchanged), ("test".into(), Reloaded::Taken)]);
    assert_eq!(shake(&server, &client, "elsewhere.test:1").await.1, Err(Reason::UnknownCa));
    drop(client);
    assert_eq!(reloads.now().await.len(), 1, "dropped settings must not be reloaded");
}

#[tokio::test]
async fn unusable_files_leave_the_old_ones_in_use_and_are_counted_once() {
    let world = World::new();
    let (server, text) = Recorder::scoped(|recorder| {
        let server = Server::load("test", world.server.clone(), &[b"h2"]).unwrap();
        fs::write(world.path("server.crt"), "half").unwrap();
        for _ in 0..3 {
            assert!(matches!(server.as_reload().reload(), Reloaded::Refused(error) if error.key == "cert_file"));
        }
        (server, recorder.render())
    });
    for line in [
        "spanring_tls_reloads_total{owner=\"test\",result=\"refused\"} 1",
        "spanring_tls_reloads_total{owner=\"test\",result=\"taken\"} 0",
        "spanring_tls_certificate_expiry_timestamp_seconds{owner=\"test\",role=\"server\"} ",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let client = Client::load("test", world.client.clone()).unwrap();
    assert_eq!(shake(&server, &client, "localhost:1").await, (Ok(()), Ok(())));
    world.authority.issue(&["elsewhere.test"]).write(world.dir.path(), "server");
    assert_eq!(server.as_reload().reload(), Reloaded::Taken);
}

#[test]
fn a_certificate_that_is_replaced_before_its_key_waits_for_it() {
    let world = World::new();
    let server = Server::load("test", world.server.clone(), &[b"h2"]).unwrap();
    let fresh = world.authority.issue(&["localhost"]);
    pki::replace(&world.path("server.crt"), &fresh.cert);
    let looking = std::thread::spawn(move || server.as_reload().reload());
    pki::replace(&world.path("server.key"), &fresh.key);
    assert_eq!(looking.join().unwrap(), Reloaded::Taken);
}

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_unless_it_is_an_authoritys() {
    let world = World::new();
    for (is_ca, expected) in [(true, Err(Reason::Other)), (false, Ok(()))] {
        let pair = pki::self_signed(is_ca);
        pair.write(world.dir.path(), "server");
        pki::replace(&world.path("ca.crt"), &pair.cert);
        assert_eq!(world.shake("localhost:1").await.1, expected, "an authority's: {is_ca}");
    }
}
