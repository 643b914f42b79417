//! The table of clients, protocols and compressions, and the test that README shows the same one.

use std::{fmt::Write, fs, path::Path};

use super::{
    Client,
    Compression::{self, Deflate, Gzip, None, Snappy, Zstd},
    Protocol::{self, Grpc, HttpJson, HttpProtobuf},
};

/// A client, and its compressions by protocol.
type Row = (Client, &'static [(Protocol, &'static [Compression])]);

/// What runs. A protocol that is missing is one that the client does not have.
pub(super) const ROWS: &[Row] = &[
    (Client::Sdk("python"), &[(Grpc, &[None, Gzip]), (HttpProtobuf, &[None, Gzip]), (HttpJson, &[None, Gzip])]),
    (Client::Sdk("node"), &[(Grpc, &[None, Gzip]), (HttpProtobuf, &[None, Gzip]), (HttpJson, &[None, Gzip])]),
    (Client::Sdk("go"), &[(Grpc, &[None, Gzip]), (HttpProtobuf, &[None, Gzip])]),
    (Client::Sdk("java"), &[(Grpc, &[None, Gzip]), (HttpProtobuf, &[None, Gzip])]),
    (
        Client::Collector,
        &[
            (Grpc, &[None, Gzip, Zstd, Snappy]),
            (HttpProtobuf, &[None, Gzip, Zstd, Deflate]),
            (HttpJson, &[None, Gzip, Zstd, Deflate]),
        ],
    ),
    (Client::Telemetrygen, &[(Grpc, &[None, Gzip]), (HttpProtobuf, &[None, Gzip])]),
    (Client::Curl("1.1"), &[(HttpProtobuf, &[None, Gzip, Zstd, Deflate]), (HttpJson, &[None, Gzip, Zstd, Deflate])]),
    (Client::Curl("2"), &[(HttpProtobuf, &[None, Gzip]), (HttpJson, &[None, Gzip])]),
];

/// The compressions of the proxies' calls to Collectors, one for each proxy.
pub(super) const BEHIND: [Compression; 3] = [None, Gzip, Zstd];

/// Returns the version that is pinned in a file of `tests/peers/`: what follows this text.
fn pinned(file: &str, before: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(file);
    let text = fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(before).unwrap();
    rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap().to_owned()
}

fn name(client: Client) -> String {
    match client {
        Client::Sdk("python") => {
            format!("SDK for Python {}", pinned("sdk/python/requirements.txt", "opentelemetry-sdk=="))
        }
        Client::Sdk("node") => {
            format!("SDK for JavaScript {}", pinned("sdk/node/package.json", "\"@opentelemetry/sdk-trace-base\": \""))
        }
        Client::Sdk("go") => format!("SDK for Go {}", pinned("sdk/go/go.mod", "go.opentelemetry.io/otel/sdk v")),
        Client::Sdk("java") => format!("SDK for Java {}", pinned("sdk/java/pom.xml", "<otel.version>")),
        Client::Sdk(other) => panic!("{other} has no name"),
        Client::Collector => format!("Collector {}, its exporters", collector()),
        Client::Telemetrygen => format!("telemetrygen {}", pinned("telemetrygen.sh", "\nversion=")),
        Client::Curl(version) => format!("curl, HTTP/{version}"),
    }
}

fn collector() -> String {
    pinned("collector/go.mod", "collector/exporter/otlpexporter v")
}

/// Returns the table of what is behind the proxies, as README has it.
fn behind() -> String {
    let names = BEHIND.map(Compression::name).join(", ");
    format!(
        "| behind Spanring | by OTLP/gRPC | by OTLP/HTTP, protobuf |\n| --- | --- | --- |\n\
         | Collector {}, with `tail_sampling` and file output | {names} | {names} |\n",
        collector()
    )
}

/// Returns the table as README has it.
fn markdown() -> String {
    let mut text =
        "| client | OTLP/gRPC | OTLP/HTTP, protobuf | OTLP/HTTP, JSON |\n| --- | --- | --- | --- |\n".to_owned();
    for (client, columns) in ROWS {
        write!(text, "| {} |", name(*client)).unwrap();
        for protocol in [Grpc, HttpProtobuf, HttpJson] {
            let compressions = columns.iter().find(|(of, _)| *of == protocol).map_or(&[][..], |(_, found)| found);
            let names: Vec<_> = compressions.iter().map(|compression| compression.name()).collect();
            write!(text, " {} |", if names.is_empty() { "–".to_owned() } else { names.join(", ") }).unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
fn readme_has_the_tables_of_clients_and_collectors() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for table in [markdown(), behind()] {
        assert!(readme.contains(&table), "README must have this table:\n{table}");
    }
}
