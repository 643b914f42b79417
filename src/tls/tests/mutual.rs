//! Clients that were accepted once and must be refused later: after their certificate expired, their authority was
//! removed, or their certificate was revoked.

use std::time::Duration;

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

use super::*;
use crate::telemetry::logs::captured;

/// A clock that stands at the beginning of a year.
#[derive(Debug)]
struct Year(u64);

impl TimeProvider for Year {
    fn current_time(&self) -> Option<UnixTime> {
        // A year of 365.2425 days, and one more day.
        Some(UnixTime::since_unix_epoch(Duration::from_secs((self.0 - 1970) * 31_556_952 + 86_400)))
    }
}

/// Returns the server's result for a client that connects in that year. `client` keeps sessions between calls.
async fn in_year(server: &Server, client: &Client, year: u64) -> Result<(), Reason> {
    let mut config = (*server.current()).clone();
    config.time_provider = Arc::new(Year(year));
    shake_with(Arc::new(config), client, "localhost:1").await.0
}

#[tokio::test]
async fn an_expired_client_cannot_resume_its_session() {
    let world = World::new().mutual();
    world.authority.issue_until(&["localhost"], 2100).write(world.dir.path(), "client");
    let (server, client) = world.both();
    for _ in 0..2 {
        assert_eq!(in_year(&server, &client, 2090).await, Ok(()));
    }
    assert_eq!(in_year(&server, &client, 2101).await, Err(Reason::Expired));
}

#[tokio::test]
async fn a_client_whose_authority_was_removed_is_refused() {
    let world = World::new().mutual();
    let (server, client) = world.both();
    assert_eq!(in_year(&server, &client, 2090).await, Ok(()));
    // The server's own certificate stays; only the clients' authority changes.
    pki::replace(&world.path("clients.crt"), &Authority::new("another").pem);
    let config = ServerConfig { client_ca_file: Some(world.path("clients.crt")), ..world.server.clone() };
    server.replace(config, &[b"h2"]).unwrap();
    assert_eq!(in_year(&server, &client, 2090).await, Err(Reason::UnknownCa));
}

#[tokio::test]
async fn an_expired_authority_authenticates_no_peer() {
    let mut world = World::new().mutual();
    let [old, new] = [Authority::until("the old one", 2100), Authority::new("the new one")];
    pki::replace(&world.path("clients.crt"), &format!("{}{}", old.pem, new.pem));
    world.server.client_ca_file = Some(world.path("clients.crt"));
    let mut clients = Vec::new();
    for (authority, name) in [(&old, "old"), (&new, "new")] {
        authority.issue_until(&["localhost"], 3000).write(world.dir.path(), name);
        let config = ClientConfig { identity: Some(identity(world.dir.path(), name)), ..world.client.clone() };
        clients.push(Client::load("test", config).unwrap());
    }
    let server = Server::load("test", world.server.clone(), &[b"h2"]).unwrap();
    for client in &clients {
        assert_eq!(in_year(&server, client, 2090).await, Ok(()));
    }
    assert_eq!(in_year(&server, &clients[0], 2101).await, Err(Reason::UnknownCa));
    assert_eq!(in_year(&server, &clients[1], 2101).await, Ok(()));
    // The clock is set back.
    assert_eq!(in_year(&server, &clients[0], 2090).await, Ok(()));
}

#[test]
fn the_log_names_the_authority_that_expired() {
    let world = World::new().mutual();
    let old = Authority::until("the old one", 2100);
    pki::replace(&world.path("clients.crt"), &old.pem);
    old.issue_until(&["localhost"], 3000).write(world.dir.path(), "client");
    let config = ServerConfig { client_ca_file: Some(world.path("clients.crt")), ..world.server.clone() };
    let server = Server::load("test", config, &[b"h2"]).unwrap();
    let client = Client::load("test", world.client).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = captured(|| {
        runtime.block_on(async {
            for year in [2090, 2101, 2102] {
                assert_eq!(in_year(&server, &client, year).await.is_ok(), year == 2090, "{year}");
            }
        });
    });
    assert_eq!(log, " WARN an authority expired: it authenticates no peer any more subject=CN=the old one\n");
}

#[tokio::test]
async fn an_authority_that_has_expired_at_the_start_causes_warnings_and_refusals() {
    let mut world = World::new().mutual();
    let gone = Authority::until("long gone", 2020);
    pki::replace(&world.path("ca.crt"), &gone.pem);
    let warnings: Vec<String> = world.server.check().unwrap().iter().map(ToString::to_string).collect();
    assert!(warnings.len() == 2, "{warnings:?}");
    assert!(warnings[0].contains("ca.crt: the authority CN=long gone expired "), "{warnings:?}");
    assert!(warnings[1].ends_with("no authority in it is valid: every peer is refused"), "{warnings:?}");
    // The same applies to the authorities of backends.
    gone.issue(&["localhost"]).write(world.dir.path(), "server");
    assert_eq!(world.client.check().unwrap().len(), 2);
    world.server.client_ca_file = None;
    world.client.identity = None;
    assert_eq!(world.shake("localhost:1").await.1, Err(Reason::UnknownCa));
}

#[tokio::test]
async fn clients_that_a_list_names_or_no_list_covers_are_refused() {
    let world = World::new().mutual();
    let crl = world.path("clients.crl");
    let config = ServerConfig { client_crl_file: Some(crl.clone()), ..world.server.clone() };
    let [good, bad] = [world.authority.issue(&["localhost"]), world.authority.issue(&["localhost"])];
    let client = |pair: &pki::Pair, name: &str| {
        pair.write(world.dir.path(), name);
        let config = ClientConfig { identity: Some(identity(world.dir.path(), name)), ..world.client.clone() };
        Client::load("test", config).unwrap()
    };
    let [good_client, bad_client] = [client(&good, "good"), client(&bad, "bad")];
    pki::replace(&crl, &world.authority.revoke(&[], 4000));
    let server = Server::load("test", config.clone(), &[b"h2"]).unwrap();
    assert_eq!(in_year(&server, &bad_client, 2090).await, Ok(()));
    // The list is reloaded like the other files.
    pki::replace(&crl, &world.authority.revoke(&[&bad], 2100));
    assert_eq!(server.as_reload().reload(), Reloaded::Taken);
    assert_eq!(in_year(&server, &bad_client, 2090).await, Err(Reason::Revoked));
    assert_eq!(in_year(&server, &good_client, 2090).await, Ok(()));
    assert_eq!(in_year(&server, &good_client, 2101).await, Err(Reason::Revoked), "the list has expired");
    // A list of another issuer does not cover these certificates.
    pki::replace(&crl, &Authority::new("another").revoke(&[], 4000));
    let warnings: Vec<String> = config.check().unwrap().iter().map(ToString::to_string).collect();
    assert!(
        warnings[0].ends_with("it has no list of CN=spanring test authority: certificates of that issuer are refused")
    );
    assert_eq!(server.as_reload().reload(), Reloaded::Taken);
    assert_eq!(in_year(&server, &good_client, 2090).await, Err(Reason::Revoked));
    // An expired list is loaded, with a warning.
    pki::replace(&crl, &world.authority.revoke(&[], 2021));
    let warnings: Vec<String> = config.check().unwrap().iter().map(ToString::to_string).collect();
    assert!(
        warnings.len() == 1 && warnings[0].contains("the list of CN=spanring test authority expired"),
        "{warnings:?}"
    );
    // A file that is no list leaves the previous list in use.
    pki::replace(&crl, &good.cert);
    let error = config.check().unwrap_err();
    assert_eq!(error.key, "client_crl_file");
    assert!(error.to_string().contains("holds no list of revoked certificates in PEM"), "{error}");
    assert!(matches!(server.as_reload().reload(), Reloaded::Refused(_)));
}
