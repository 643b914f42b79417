//! Values as an operator writes them: Go durations, sizes, `host:port`. Each says what a good one looks like.

use std::{fmt, num::NonZeroUsize, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes in a mebibyte.
pub(super) const MIB: usize = 1 << 20;

/// Port of OTLP/gRPC (IANA), for backends that are written without one.
pub const OTLP_GRPC_PORT: u16 = 4317;

/// The admin listener's port unless written: where the Collector serves its metrics.
const ADMIN_PORT: u16 = 8888;

/// The port for probes unless written, as in the Collector's extension.
const PROBES_PORT: u16 = 13133;

/// Units of Go's `time.ParseDuration`, with their nanoseconds. Longer names first: `ms` must not be read as `m`.
const DURATION_UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Units of sizes, with their bytes.
const SIZE_UNITS: [(&str, usize); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// A duration in Go's spelling: `1m30s`, `200ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// A number of bytes: `16MiB`, `64KiB`, or a bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub usize);

/// A host or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A backend of a list: a [`HostPort`] whose port is 4317 unless written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend(pub HostPort);

/// How many threads serve connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkerThreads {
    /// One for each CPU that the cgroup grants.
    #[default]
    Auto,
    /// As many as said.
    Count(NonZeroUsize),
}

/// A version of TLS: `1.2` or `1.3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsVersion(pub crate::tls::Version);

/// Why a value can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A number where a duration is wanted.
    #[error("\"{0}\" has no unit; write {0}s or {0}ms")]
    NoUnit(String),
    /// Not a duration.
    #[error("\"{0}\" is not a duration; write 200ms, 5s or 1m30s")]
    Duration(String),
    /// Not a size.
    #[error("\"{0}\" is not a size; write 16MiB, 64KiB or a number of bytes")]
    Size(String),
    /// Not a way to name backends on the command line.
    #[error("\"{0}\" names no backends; write static://host:port,host:port or dns://name:port")]
    Backends(String),
    /// Not a number of threads.
    #[error("\"{0}\" is not a number of threads; write auto, or a number from 1 up")]
    Threads(String),
    /// Not a version of TLS that is spoken.
    #[error("\"{0}\" is not a TLS version that is spoken here; write 1.2 or 1.3")]
    TlsVersion(String),
    /// An address without a port; what the port could be.
    #[error("\"{0}\" has no port; write {0}:{1}")]
    NoPort(String, ExamplePort),
    /// A port without an address.
    #[error(
        "\"{0}\" is a port without an address; write 127.0.0.1:{0} (this machine) or 0.0.0.0:{0} (all IPv4 interfaces)"
    )]
    PortOnly(u16),
    /// An address without a host.
    #[error(
        "\"{0}\" names no address; write localhost{0}, 0.0.0.0{0} (all IPv4 interfaces) or [::]{0} (all interfaces)"
    )]
    NoHost(String),
    /// An address with a scheme or path.
    #[error("\"{0}\" is a URL; write host:port, without scheme and path")]
    Url(String),
    /// Not an address.
    #[error("\"{0}\" is not an address; write host:port, or [address]:port for IPv6")]
    Address(String),
}

/// The port that a message suggests: that of the listener or backend that is meant, where it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExamplePort(pub Option<u16>);

impl fmt::Display for ExamplePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(port) => port.fmt(f),
            None => f.write_str("PORT"),
        }
    }
}

impl FromStr for GoDuration {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::Duration(text.to_owned());
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if text.parse::<f64>().is_ok_and(f64::is_finite) && !text.starts_with(['-', '+']) {
            return Err(ValueError::NoUnit(text.to_owned()));
        }
        let mut rest = text;
        let mut nanos = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (number, after) = rest.split_at(digits);
            let number: f64 = number.parse().map_err(|_| bad())?;
            let (unit, after) = DURATION_UNITS
                .iter()
                .find_map(|(name, unit)| Some((unit, after.strip_prefix(name)?)))
                .ok_or_else(bad)?;
            nanos += number * unit;
            rest = after;
        }
        if text.is_empty() {
            return Err(bad());
        }
        Duration::try_from_secs_f64(nanos / 1e9).map(round_to_nanos).map(Self).map_err(|_| bad())
    }
}

/// Takes off what floating point added: no operator means less than a microsecond above a second.
fn round_to_nanos(duration: Duration) -> Duration {
    if duration >= Duration::from_secs(1) {
        let micros = u64::try_from((duration + Duration::from_nanos(500)).as_micros()).unwrap_or(u64::MAX);
        return Duration::from_micros(micros);
    }
    duration
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        let mut rest = nanos;
        for (unit, size) in [
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1_000),
            ("ns", 1),
        ] {
            let count = rest / size;
            rest %= size;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, unit) =
            SIZE_UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
        let number: Option<usize> = number.trim_end().parse().ok();
        number.and_then(|number| number.checked_mul(unit)).map(Self).ok_or_else(|| ValueError::Size(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("GiB", 1 << 30), ("MiB", MIB), ("KiB", 1 << 10)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl HostPort {
    /// Reads `host:port`; without a port it has `default_port`, and where there is none that is an error.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, ValueError> {
        let bad = || ValueError::Address(text.to_owned());
        if text.contains('/') {
            return Err(ValueError::Url(text.to_owned()));
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(bad)?;
                // Go takes an IPv4 address in brackets too: "[${env:POD_IP}]:4317" is written for both families.
                let _: std::net::IpAddr = host.parse().map_err(|_| bad())?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_number = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if host.is_empty() && port.is_some_and(is_number) {
            return Err(ValueError::NoHost(text.to_owned()));
        }
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == ',' || c == '@') {
            return Err(bad());
        }
        let port = match port {
            Some(port) if is_number(port) => port.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
            None => default_port.ok_or_else(|| match text.parse() {
                Ok(port) => ValueError::PortOnly(port),
                Err(_) => ValueError::NoPort(text.to_owned(), ExamplePort::default()),
            })?,
        };
        Ok(Self { host: host.to_owned(), port })
    }

    /// Reads the address of something whose usual port is `example`: suggested where none is written, and not assumed.
    pub fn with_example(text: &str, example: u16) -> Result<Self, ValueError> {
        text.parse().map_err(|error| match error {
            ValueError::NoPort(text, _) => ValueError::NoPort(text, ExamplePort(Some(example))),
            error => error,
        })
    }

    /// The address of an OTLP/gRPC listener.
    pub fn of_grpc(text: &str) -> Result<Self, ValueError> {
        Self::with_example(text, OTLP_GRPC_PORT)
    }

    /// The address of the admin listener.
    pub fn of_admin(text: &str) -> Result<Self, ValueError> {
        Self::with_example(text, ADMIN_PORT)
    }

    /// The address of the listener for probes.
    pub fn of_probes(text: &str) -> Result<Self, ValueError> {
        Self::with_example(text, PROBES_PORT)
    }
}

impl FromStr for HostPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text, None)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Backend {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        HostPort::parse(text, Some(OTLP_GRPC_PORT)).map(Self)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WorkerThreads {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Count).map_err(|_| ValueError::Threads(text.to_owned())),
        }
    }
}

impl fmt::Display for WorkerThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// Serialises as it is written, and reads from text or from a bare number.
macro_rules! as_text {
    ($($type:ident: $expecting:literal;)*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(TextVisitor { expecting: $expecting, parse: $type::from_str })
            }
        }
    )*};
}

as_text! {
    GoDuration: "a duration such as 200ms, 5s or 1m30s";
    ByteSize: "a size such as 16MiB or a number of bytes";
    HostPort: "an address such as localhost:4317";
    Backend: "a backend such as collector-0:4317";
    WorkerThreads: "auto or a number of threads";
    TlsVersion: "1.2 or 1.3";
}

pub(super) struct TextVisitor<T> {
    pub(super) expecting: &'static str,
    pub(super) parse: fn(&str) -> Result<T, ValueError>,
}

impl<T> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duration(text: &str) -> Result<Duration, String> {
        text.parse::<GoDuration>().map(|d| d.0).map_err(|e| e.to_string())
    }

    #[test]
    fn durations_read_as_go_writes_them() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("2h45m0.5s"), Ok(Duration::from_millis(9_900_500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("0.1s"), Ok(Duration::from_millis(100)));
    }

    #[test]
    fn a_bad_duration_says_what_a_good_one_looks_like() {
        assert_eq!(duration("5"), Err("\"5\" has no unit; write 5s or 5ms".into()));
        for bad in ["", "s", "5x", "-5s", "5s5", "1..2s", "five", "1e400s", "inf", "99999999999999999999h"] {
            let error = duration(bad).expect_err(bad);
            assert!(error.ends_with("write 200ms, 5s or 1m30s"), "{bad}: {error}");
        }
    }

    #[test]
    fn durations_come_back_as_they_were_written() {
        for text in ["1m30s", "200ms", "5s", "0s", "2h", "1s500ms", "50us"] {
            assert_eq!(text.parse::<GoDuration>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn sizes_have_units_or_are_bytes() {
        let size = |text: &str| text.parse::<ByteSize>().map(|s| s.0).ok();
        assert_eq!(size("16MiB"), Some(16 << 20));
        assert_eq!(size("64 KiB"), Some(64 << 10));
        assert_eq!(size("2MB"), Some(2_000_000));
        assert_eq!(size("4096"), Some(4096));
        for bad in ["", "MiB", "-1", "1.5MiB", "16Mib", "99999999999999999999GiB", "18446744073709551615KiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert_eq!(ByteSize(16 << 20).to_string(), "16MiB");
        assert_eq!(ByteSize(1500).to_string(), "1500B");
    }

    #[test]
    fn addresses_are_host_and_port() {
        let address = |text| HostPort::parse(text, None).map(|a| (a.host, a.port)).map_err(|e| e.to_string());
        assert_eq!(address("127.0.0.1:4317"), Ok(("127.0.0.1".into(), 4317)));
        assert_eq!(address("[::1]:4317"), Ok(("::1".into(), 4317)));
        assert_eq!(address("[10.0.0.1]:4317"), Ok(("10.0.0.1".into(), 4317)), "as Go takes it");
        assert_eq!(address("localhost:0"), Ok(("localhost".into(), 0)));
        assert_eq!(address("localhost"), Err("\"localhost\" has no port; write localhost:PORT".into()));
        let admin = HostPort::of_admin("127.0.0.1").map_err(|error| error.to_string());
        assert_eq!(admin, Err("\"127.0.0.1\" has no port; write 127.0.0.1:8888".into()), "that of no other listener");
        assert_eq!(
            address("4317"),
            Err(
                "\"4317\" is a port without an address; write 127.0.0.1:4317 (this machine) or 0.0.0.0:4317 (all IPv4 \
                 interfaces)"
                    .into()
            )
        );
        assert!(address(":4317").is_err_and(|e| e.contains("0.0.0.0:4317 (all IPv4 interfaces)")));
        assert!(address("http://a:1").is_err_and(|e| e.contains("is a URL")));
        for bad in ["", "a:b", "a:1:2", "::1", "[::1", "[::1]4317", "[a]:1", "a:65536", "a b:1", "a:", ":"] {
            assert!(address(bad).is_err(), "{bad}");
        }
        assert_eq!(HostPort::parse("a", Some(4317)), Ok(HostPort { host: "a".into(), port: 4317 }));
        assert_eq!(HostPort { host: "::1".into(), port: 1 }.to_string(), "[::1]:1");
    }
}
