//! Compiles the protocol buffers of this folder to Rust. It uses protox, so no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// The admin service.
const RING: &str = "spanring/admin/v1/ring.proto";

/// Fields that JSON writes in another form, and the function of `admin::api::json` that does it.
const WORDS: &[(&str, &str)] = &[
    (".spanring.admin.v1.PoolRing.cause", "cause"),
    (".spanring.admin.v1.Change.cause", "cause"),
    (".spanring.admin.v1.Member.state", "state"),
    (".spanring.admin.v1.Owner.state", "state"),
    (".spanring.admin.v1.Backend.state", "state"),
    (".spanring.admin.v1.PoolRing.built_at", "time"),
    (".spanring.admin.v1.Member.since", "time"),
    (".spanring.admin.v1.Owner.until", "time"),
    (".spanring.admin.v1.PoolRing.handoff_until", "time"),
    (".spanring.admin.v1.PreviousOwner.until", "time"),
    (".spanring.admin.v1.Backend.since", "time"),
    (".spanring.admin.v1.Backend.held_until", "time"),
    (".spanring.admin.v1.Failure.at", "time"),
    (".spanring.admin.v1.Change.at", "time"),
    (".spanring.admin.v1.Change.handoff_until", "time"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile([RING], ["proto"])?;
    // The descriptors that reflection serves.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("spanring.admin.v1.bin"), files.encode_to_vec())?;
    let mut config = tonic_prost_build::configure().btree_map(".").type_attribute(".", "#[derive(serde::Serialize)]");
    for (field, word) in WORDS {
        let attribute = format!("#[serde(serialize_with = \"crate::admin::api::json::{word}\")]");
        config = config.field_attribute(*field, attribute);
    }
    // Only the rings of the Collector's exporter have this text.
    let if_any = "#[serde(skip_serializing_if = \"String::is_empty\")]";
    config = config.field_attribute(".spanring.admin.v1.Member.exporter_name", if_any);
    config.compile_fds(files)?;
    Ok(())
}
