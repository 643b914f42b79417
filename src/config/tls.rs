//! Checks the `tls` sections, and makes the configuration of the module `tls` from them.

use std::{path::PathBuf, time::Duration};

use super::message::Message;
use crate::{
    settings::{ClientTls, IfWritten, Resolver, ServerTls, values::FilePath},
    tls::{CheckedName, ClientConfig, Identity, ServerConfig, TlsError},
};

/// The shortest interval at which files are checked. A shorter one is a typing error, and a load on the disk.
const MIN_RELOAD_INTERVAL: Duration = Duration::from_millis(100);

/// An error or a warning: the key that it is about, or an empty text for the whole section, and the message.
type Finding = (&'static str, Message);

/// The warnings about a section, or its errors.
pub(super) type Findings = Result<Vec<Finding>, Vec<Finding>>;

impl ServerTls {
    /// Returns the TLS configuration of the listener.
    pub(super) fn config(&self) -> ServerConfig {
        ServerConfig {
            identity: Identity {
                cert_file: path(&self.cert_file).unwrap_or_default(),
                key_file: path(&self.key_file).unwrap_or_default(),
            },
            client_ca_file: path(&self.client_ca_file),
            client_crl_file: path(&self.client_crl_file),
            min_version: self.min_version,
            reload_interval: self.reload_interval,
        }
    }

    /// Checks the keys, and then the files that they name.
    pub(super) fn check(&self) -> Findings {
        let files = [("cert_file", &self.cert_file), ("key_file", &self.key_file)];
        let missing = files.into_iter().filter(|(_, path)| path.is_none());
        let mut errors: Vec<Finding> = missing
            .map(|(key, _)| (key, "is missing; a listener that speaks TLS has a certificate and a key".into()))
            .collect();
        if self.client_crl_file.is_some() && self.client_ca_file.is_none() {
            let message = "needs client_ca_file: without it no client is asked for a certificate that could be revoked";
            errors.push(("client_crl_file", message.into()));
        }
        errors.extend(reload_interval_error(self.reload_interval));
        if errors.is_empty() { checked_files(self.config().check()) } else { Err(errors) }
    }
}

impl ClientTls {
    /// Returns the TLS configuration of the connections to backends; `None` is plaintext.
    pub(super) fn config(&self, resolver: &Resolver) -> Option<ClientConfig> {
        if self.insecure {
            return None;
        }
        let identity = path(&self.cert_file).zip(path(&self.key_file));
        Some(ClientConfig {
            ca_file: path(&self.ca_file),
            identity: identity.map(|(cert_file, key_file)| Identity { cert_file, key_file }),
            name: match (looked_up(resolver), self.server_name_override.as_str()) {
                (Some(name), "") => CheckedName::Is(name.trim_end_matches('.').to_owned()),
                (None, "") => CheckedName::Entry,
                (_, name) => CheckedName::Is(name.to_owned()),
            },
            insecure_skip_verify: self.insecure_skip_verify,
            min_version: self.min_version,
            reload_interval: self.reload_interval,
        })
    }

    /// Checks the keys, and then the files that they name.
    pub(super) fn check(&self, resolver: &Resolver) -> Findings {
        let Some(config) = self.config(resolver) else {
            let others = Self { insecure: false, ..self.clone() };
            let warning = ("", "insecure is true: the pool is plaintext, and the other keys of tls are ignored".into());
            return Ok((others != Self::default()).then_some(warning).into_iter().collect());
        };
        let mut errors: Vec<Finding> = Vec::new();
        for (written, other, key) in
            [(&self.cert_file, &self.key_file, "key_file"), (&self.key_file, &self.cert_file, "cert_file")]
        {
            if written.is_some() && other.is_none() {
                errors.push((key, "is missing; a certificate needs its key, and a key its certificate".into()));
            }
        }
        errors.extend(reload_interval_error(self.reload_interval));
        // The check of the resolver finds a name that is missing.
        if let Some(error) = config.name_error().filter(|_| config.name != CheckedName::Is(String::new())) {
            errors.push((error.key, Message::both(error.to_string(), error.unnamed())));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut warnings = checked_files(config.check())?;
        if self.insecure_skip_verify {
            warnings.push(("", "insecure_skip_verify is true: anyone can impersonate a backend".into()));
        }
        Ok(warnings)
    }
}

/// Returns the findings about files. Errors are marked as local, since the files may be valid on another machine.
fn checked_files(checked: Result<Vec<crate::tls::Warning>, TlsError>) -> Findings {
    match checked {
        Ok(warnings) => {
            Ok(warnings.into_iter().map(|one| (one.key, Message::both(one.to_string(), one.message))).collect())
        }
        Err(error) => Err(vec![(error.key, Message::both(error.to_string(), error.unnamed()).local())]),
    }
}

fn reload_interval_error(interval: Option<Duration>) -> Option<Finding> {
    let least = MIN_RELOAD_INTERVAL.as_millis();
    let message = || format!("must be at least {least}ms, or 0s for never");
    interval.filter(|interval| *interval < MIN_RELOAD_INTERVAL).map(|_| ("reload_interval", message().into()))
}

/// Returns the configured name of which all backends have a certificate; `None` if each has one of its own.
///
/// Anyone who can change an answer of DNS can name other targets. So the certificate has to be valid for the name that
/// the operator wrote (RFC 6125, 6.2.1): of `_service._proto.name` of SRV records that is `name`.
fn looked_up(resolver: &Resolver) -> Option<&str> {
    let srv = || {
        let mut name = resolver.srv.as_ref()?.hostname.as_str();
        while let Some((_, rest)) = name.strip_prefix('_').and_then(|label| label.split_once('.')) {
            name = rest;
        }
        Some(name)
    };
    let k8s = || resolver.k8s.as_ref().map(|k8s| k8s.service.as_str());
    resolver.dns.as_ref().map(|dns| dns.hostname.as_str()).or_else(srv).or_else(k8s)
}

fn path(file: &IfWritten<FilePath>) -> Option<PathBuf> {
    file.as_ref().map(|FilePath(path)| path.clone())
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

    /// Returns the name that is checked in the certificates of a pool's backends; `None` is plaintext.
    fn name(resolver: &str, tls: &str) -> Option<CheckedName> {
        config(resolver, tls, "").expect(tls).pools.remove(0).tls.map(|tls| tls.name)
    }

    #[test]
    fn every_tls_section_without_insecure_means_tls() {
        let ca = "ca_file: \"${env:PKI}/ca.crt\"";
        assert_eq!(name(STATIC, ""), None);
        assert_eq!(name(STATIC, "tls: { insecure: true }"), None);
        assert_eq!(name(STATIC, &format!("tls: {{ {ca} }}")), Some(CheckedName::Entry));
        assert_eq!(name(STATIC, &format!("tls: {{ insecure: false, {ca} }}")), Some(CheckedName::Entry));
        // This needs the system's authorities, which a machine may not have.
        for empty in ["tls:", "tls: {}"] {
            match config(STATIC, empty, "") {
                Ok(config) => assert!(config.pools[0].tls.is_some(), "{empty} must be TLS"),
                Err(error) => assert!(error.contains("has no certificates of authorities"), "{error}"),
            }
        }
    }

    #[test]
    fn the_checked_name_is_the_configured_or_the_looked_up_one() {
        let dns = "{ dns: { hostname: collectors.test. } }";
        let tls = |more: &str| format!("tls: {{ ca_file: \"${{env:PKI}}/ca.crt\"{more} }}");
        assert_eq!(name(dns, &tls("")), Some(CheckedName::Is("collectors.test".into())));
        let other = Some(CheckedName::Is("other.test".into()));
        assert_eq!(name(dns, &tls(", server_name_override: other.test")), other);
        assert_eq!(name(STATIC, &tls(", server_name_override: other.test")), other);
        let k8s = "{ k8s: { service: collectors.observability } }";
        assert_eq!(name(k8s, &tls("")), Some(CheckedName::Is("collectors.observability".into())));
        assert_eq!(name(k8s, &tls(", server_name_override: other.test")), other);
        let error = config(STATIC, &tls(", server_name_override: \"a b\""), "").expect_err("no name");
        assert!(error.contains("server_name_override: cannot be used: \"a b\" is not a host name"), "{error}");
    }

    #[test]
    fn an_empty_key_that_names_a_file_is_refused() {
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
        let error =
            whole(", client_crl_file: \"${env:PKI}/ca.crl\"").expect_err("no client is asked for a certificate");
        assert!(error.contains("grpc.tls.client_crl_file: needs client_ca_file"), "{error}");
        let both = ", client_ca_file: \"${env:PKI}/ca.crt\", client_crl_file: \"${env:PKI}/ca.crl\"";
        assert!(whole(both).is_ok_and(|config| config.warnings.is_empty()));
    }

    #[test]
    fn errors_have_their_position() {
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
        assert!(server("{ min_version: 1.1 }").contains("\"1.1\" is not a supported TLS version; write 1.2 or 1.3"));
        assert!(server("{ cert_fil: a }").contains("unknown key \"cert_fil\", did you mean \"cert_file\"?"));
        let client = config(STATIC, "tls: { cert_file: a }", "").expect_err("no key");
        assert!(client.contains("pools.tail.tls.key_file: is missing"), "{client}");
        let often = config(STATIC, "tls: { reload_interval: 10ms }", "").expect_err("too often");
        assert!(often.contains("pools.tail.tls.reload_interval: must be at least 100ms, or 0s for never"), "{often}");
        let idle = config(STATIC, "tls: { insecure: true, insecure_skip_verify: true }", "").expect("valid");
        assert_eq!(
            idle.warnings,
            ["f:5:5: pools.tail.tls: insecure is true: the pool is plaintext, and the other keys of tls are ignored"]
        );
    }
}
