//! The `tls` sections: their layout with the Collector's keys, their defaults, what the rooms get of them.

use std::{path::PathBuf, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use super::{
    layout::Resolver,
    said::Said,
    values::{GoDuration, TlsVersion},
};
use crate::tls::{CheckedName, ClientConfig, Identity, ServerConfig, TlsError, Version, Warning};

/// `receivers.otlp.protocols.grpc.tls`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTls {
    /// The certificate, with its chain.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "section")]
    pub cert_file: Option<FilePath>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "section")]
    pub key_file: Option<FilePath>,
    /// Authorities of clients' certificates; with it every client has to show one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "section")]
    pub client_ca_file: Option<FilePath>,
    /// Which of these certificates were revoked.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "section")]
    pub client_crl_file: Option<FilePath>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// How often the files are read again; `0s` is never.
    pub reload_interval: GoDuration,
}

/// `pools.NAME.tls`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTls {
    /// Whether it is plaintext after all.
    pub insecure: bool,
    /// Authorities of the backends' certificates; those that the system trusts unless written.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "section")]
    pub ca_file: Option<FilePath>,
    /// The certificate to show to backends that ask, with its chain.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "section")]
    pub cert_file: Option<FilePath>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "section")]
    pub key_file: Option<FilePath>,
    /// The name that backends' certificates have to bear.
    pub server_name_override: String,
    /// Whether any certificate will do.
    pub insecure_skip_verify: bool,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// How often the files are read again; `0s` is never.
    pub reload_interval: GoDuration,
}

/// The path of a file. A key that is there names one: an empty value is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FilePath(PathBuf);

/// The shortest time between two looks at files: below it a slip of the finger is load on a disk.
const MIN_RELOAD_INTERVAL: Duration = Duration::from_millis(100);

/// A complaint or a warning: the key, if it is about one, and what is to be said of it.
pub(super) type Complaint = (&'static str, Said);

/// Reads a section that is there: an empty one holds its defaults, and is not the same as none.
pub(super) fn section<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Default for ServerTls {
    fn default() -> Self {
        let room = ServerConfig::default();
        Self {
            cert_file: None,
            key_file: None,
            client_ca_file: None,
            client_crl_file: None,
            min_version: TlsVersion(room.min_version),
            reload_interval: GoDuration(room.reload_interval.unwrap_or_default()),
        }
    }
}

impl Default for ClientTls {
    fn default() -> Self {
        let room = ClientConfig::default();
        Self {
            insecure: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name_override: String::new(),
            insecure_skip_verify: room.insecure_skip_verify,
            min_version: TlsVersion(room.min_version),
            reload_interval: GoDuration(room.reload_interval.unwrap_or_default()),
        }
    }
}

impl ServerTls {
    /// What the receiver gets of it.
    pub(super) fn room(&self) -> ServerConfig {
        let TlsVersion(min_version) = self.min_version;
        ServerConfig {
            identity: Identity {
                cert_file: written(&self.cert_file).unwrap_or_default(),
                key_file: written(&self.key_file).unwrap_or_default(),
            },
            client_ca_file: written(&self.client_ca_file),
            client_crl_file: written(&self.client_crl_file),
            min_version,
            reload_interval: super::rooms::unless_zero(self.reload_interval.0),
        }
    }

    /// What is wrong with it, and what is worth a warning.
    pub(super) fn check(&self) -> Result<Vec<Complaint>, Vec<Complaint>> {
        let files = [("cert_file", &self.cert_file), ("key_file", &self.key_file)];
        let missing = files.into_iter().filter(|(_, path)| path.is_none());
        let mut wrong: Vec<Complaint> = missing
            .map(|(key, _)| (key, "is missing; a listener that speaks TLS has a certificate and a key".into()))
            .collect();
        if self.client_crl_file.is_some() && self.client_ca_file.is_none() {
            let message = "needs client_ca_file: without it no client is asked for a certificate that could be revoked";
            wrong.push(("client_crl_file", message.into()));
        }
        wrong.extend(too_often(self.reload_interval));
        if !wrong.is_empty() {
            return Err(wrong);
        }
        self.room().check().map(said).map_err(complaints)
    }
}

impl ClientTls {
    /// What dispatch gets of it; `None` is plaintext.
    pub(super) fn room(&self, resolver: &Resolver) -> Option<ClientConfig> {
        if self.insecure {
            return None;
        }
        let TlsVersion(min_version) = self.min_version;
        let cert_file = written(&self.cert_file).zip(written(&self.key_file));
        Some(ClientConfig {
            ca_file: written(&self.ca_file),
            identity: cert_file.map(|(cert_file, key_file)| Identity { cert_file, key_file }),
            name: match (&resolver.dns, self.server_name_override.as_str()) {
                (Some(dns), "") => CheckedName::Is(dns.hostname.trim_end_matches('.').to_owned()),
                (None, "") => CheckedName::Entry,
                (_, name) => CheckedName::Is(name.to_owned()),
            },
            insecure_skip_verify: self.insecure_skip_verify,
            min_version,
            reload_interval: super::rooms::unless_zero(self.reload_interval.0),
        })
    }

    /// What is wrong with it, and what is worth a warning.
    pub(super) fn check(&self, resolver: &Resolver) -> Result<Vec<Complaint>, Vec<Complaint>> {
        if self.insecure {
            let rest = Self { insecure: false, ..self.clone() };
            let idle = rest != Self::default();
            return Ok(idle
                .then(|| ("", "insecure is true: the pool is plaintext, whatever else stands in tls".into()))
                .into_iter()
                .collect());
        }
        let mut wrong: Vec<Complaint> = Vec::new();
        for (there, missing, key) in
            [(&self.cert_file, &self.key_file, "key_file"), (&self.key_file, &self.cert_file, "cert_file")]
        {
            if there.is_some() && missing.is_none() {
                wrong.push((key, "is missing; a certificate needs its key, and a key its certificate".into()));
            }
        }
        wrong.extend(too_often(self.reload_interval));
        let Some(room) = self.room(resolver) else { return Ok(Vec::new()) };
        // A name that is missing is complained about where it is.
        if let Some(error) = room.name_error().filter(|_| room.name != CheckedName::Is(String::new())) {
            wrong.push((error.key, Said::both(error.to_string(), error.unnamed())));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let mut warnings = room.check().map(said).map_err(complaints)?;
        if self.insecure_skip_verify {
            warnings.push(("", "insecure_skip_verify is true: anyone can impersonate a backend".into()));
        }
        Ok(warnings)
    }
}

fn complaints(error: TlsError) -> Vec<Complaint> {
    vec![(error.key, Said::both(error.to_string(), error.unnamed()).local())]
}

fn said(warnings: Vec<Warning>) -> Vec<Complaint> {
    let said = |one: Warning| (one.key, Said::both(one.to_string(), one.message));
    warnings.into_iter().map(said).collect()
}

/// What is wrong with how often files are looked at.
fn too_often(interval: GoDuration) -> Option<Complaint> {
    let is_often = !interval.0.is_zero() && interval.0 < MIN_RELOAD_INTERVAL;
    is_often.then(|| {
        ("reload_interval", format!("must be at least {}ms, or 0s for never", MIN_RELOAD_INTERVAL.as_millis()).into())
    })
}

impl FilePath {
    /// As text, if it is any.
    pub fn to_str(&self) -> Option<&str> {
        self.0.to_str()
    }
}

fn written(path: &Option<FilePath>) -> Option<PathBuf> {
    path.as_ref().map(|FilePath(path)| path.clone())
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = FilePath;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the path of a file, which is not empty; name a file, or leave the key out")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<FilePath, E> {
                // What a check hangs on is never switched off by a variable that is not set.
                if text.trim().is_empty() { self.visit_unit() } else { Ok(FilePath(text.into())) }
            }

            fn visit_unit<E: de::Error>(self) -> Result<FilePath, E> {
                Err(E::custom("is empty; name a file, or leave the key out"))
            }
        }
        deserializer.deserialize_string(Text)
    }
}

impl std::str::FromStr for TlsVersion {
    type Err = super::values::ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "1.2" => Ok(Self(Version::Tls12)),
            "1.3" => Ok(Self(Version::Tls13)),
            _ => Err(super::values::ValueError::TlsVersion(text.to_owned())),
        }
    }
}

impl std::fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Version::Tls12 => "1.2",
            Version::Tls13 => "1.3",
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        config::{Config, Draft},
        tls::{CheckedName, tests::folder},
    };

    fn config(resolver: &str, tls: &str, server: &str) -> Result<Config, String> {
        let text = format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ {server} }} }} }} }}\npools:\n  tail:\n    resolver: {resolver}\n    \
             {tls}\nroutes: [{{ signals: [traces], pool: tail }}]\n"
        );
        let pki = |name: &str| (name == "PKI").then(|| folder().display().to_string());
        let draft = Draft::parse("f", &text, &pki).map_err(|error| error.to_string())?;
        draft.check().map_err(|error| error.to_string())
    }

    const STATIC: &str = "{ static: { hostnames: [a] } }";

    /// What is checked of a pool's backends; `None` is plaintext.
    fn name(resolver: &str, tls: &str) -> Option<CheckedName> {
        config(resolver, tls, "").expect(tls).pools.remove(0).tls.map(|tls| tls.name)
    }

    #[test]
    fn any_section_but_an_insecure_one_is_tls() {
        let ca = "ca_file: \"${env:PKI}/ca.crt\"";
        assert_eq!(name(STATIC, ""), None);
        assert_eq!(name(STATIC, "tls: { insecure: true }"), None);
        assert_eq!(name(STATIC, &format!("tls: {{ {ca} }}")), Some(CheckedName::Entry));
        assert_eq!(name(STATIC, &format!("tls: {{ insecure: false, {ca} }}")), Some(CheckedName::Entry));
        // The system's authorities, which a machine may not have.
        for empty in ["tls:", "tls: {}"] {
            match config(STATIC, empty, "") {
                Ok(config) => assert!(config.pools[0].tls.is_some(), "{empty} must be TLS"),
                Err(error) => assert!(error.contains("has no certificates of authorities"), "{error}"),
            }
        }
    }

    #[test]
    fn the_name_is_what_is_written_or_what_is_looked_up() {
        let dns = "{ dns: { hostname: collectors.test. } }";
        let tls = |more: &str| format!("tls: {{ ca_file: \"${{env:PKI}}/ca.crt\"{more} }}");
        assert_eq!(name(dns, &tls("")), Some(CheckedName::Is("collectors.test".into())));
        let other = Some(CheckedName::Is("other.test".into()));
        assert_eq!(name(dns, &tls(", server_name_override: other.test")), other);
        assert_eq!(name(STATIC, &tls(", server_name_override: other.test")), other);
        let error = config(STATIC, &tls(", server_name_override: \"a b\""), "").expect_err("no name");
        assert!(error.contains("server_name_override: cannot be used: \"a b\" is not a host name"), "{error}");
    }

    #[test]
    fn a_key_of_a_file_that_is_there_and_empty_is_refused() {
        let whole = |more: &str| {
            let text =
                format!("{{ cert_file: \"${{env:PKI}}/server.crt\", key_file: \"${{env:PKI}}/server.key\"{more} }}");
            config(STATIC, "", &format!("tls: {text}"))
        };
        assert!(whole("").is_ok());
        for empty in ["\"\"", "", "~", "\"${env:NONE:-}\"", "\" \""] {
            for key in ["client_ca_file", "client_crl_file"] {
                let error = whole(&format!(", {key}: {empty}")).expect_err(empty);
                assert!(error.contains(&format!("grpc.tls.{key}: ")), "{error}");
                assert!(error.contains("empty; name a file, or leave the key out"), "{error}");
            }
            for key in ["ca_file", "cert_file", "key_file"] {
                let error = config(STATIC, &format!("tls: {{ {key}: {empty} }}"), "").expect_err(empty);
                assert!(error.contains(&format!("pools.tail.tls.{key}: ")) && error.contains("empty; name"), "{error}");
            }
        }
        let error = whole(", client_crl_file: \"${env:PKI}/ca.crl\"").expect_err("nobody shows a certificate");
        assert!(error.contains("grpc.tls.client_crl_file: needs client_ca_file"), "{error}");
        let both = ", client_ca_file: \"${env:PKI}/ca.crt\", client_crl_file: \"${env:PKI}/ca.crl\"";
        assert!(whole(both).is_ok_and(|config| config.warnings.is_empty()));
    }

    #[test]
    fn what_is_wrong_is_found_with_its_place() {
        let server = |text: &str| config(STATIC, "", &format!("tls: {text}")).expect_err(text);
        let missing = server("{}");
        assert!(
            missing.contains("grpc.tls.cert_file: is missing") && missing.contains("grpc.tls.key_file: is missing")
        );
        let error = server("{ cert_file: /nowhere/a.crt, key_file: /nowhere/a.key }");
        assert!(
            error.starts_with("f:1:61: receivers.otlp.protocols.grpc.tls.cert_file: cannot read /nowhere"),
            "{error}"
        );
        assert!(
            server("{ min_version: 1.1 }")
                .contains("\"1.1\" is not a TLS version that is spoken here; write 1.2 or 1.3")
        );
        assert!(server("{ cert_fil: a }").contains("unknown key \"cert_fil\", did you mean \"cert_file\"?"));
        let client = config(STATIC, "tls: { cert_file: a }", "").expect_err("no key");
        assert!(client.contains("pools.tail.tls.key_file: is missing"), "{client}");
        let often = config(STATIC, "tls: { reload_interval: 10ms }", "").expect_err("too often");
        assert!(often.contains("pools.tail.tls.reload_interval: must be at least 100ms, or 0s for never"), "{often}");
        let idle = config(STATIC, "tls: { insecure: true, insecure_skip_verify: true }", "").expect("valid");
        assert_eq!(
            idle.warnings,
            ["pools.tail.tls: insecure is true: the pool is plaintext, whatever else stands in tls"]
        );
    }
}
