//! Values that are written as text: durations, sizes, numbers of threads and file paths. The error for an invalid value
//! shows valid ones.

use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    addresses::ExamplePort,
    section::{Read, Setting},
};

/// The number of bytes in a mebibyte.
pub(crate) const MIB: usize = 1 << 20;

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

/// A number of bytes whose key is a number of MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mebibytes {
    /// The bytes.
    pub bytes: usize,
}

/// The path of a file. It must not be empty: a key that is written has to name a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(pub PathBuf);

/// The number of threads that serve connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkerThreads {
    /// One for each CPU that the cgroup grants.
    #[default]
    Auto,
    /// This number.
    Count(NonZeroUsize),
}

/// The reason why a value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A number without a unit, where a duration is expected.
    #[error("\"{0}\" has no unit; write {0}s or {0}ms")]
    NoUnit(String),
    /// Not a duration.
    #[error("\"{0}\" is not a duration; write 200ms, 5s or 1m30s")]
    Duration(String),
    /// Not a size.
    #[error("\"{0}\" is not a size; write 16MiB, 64KiB or a number of bytes")]
    Size(String),
    /// A size with a unit that does not exist, and the size that was probably meant.
    #[error("\"{0}\" has an unknown unit; write {1}")]
    SizeUnit(String, String),
    /// A size with a unit, where a number of MiB is expected, and that number.
    #[error("\"{0}\" has a unit; the key is a number of MiB: write {1}")]
    MebibytesUnit(String, usize),
    /// Not a number of MiB.
    #[error("\"{0}\" is not a number of MiB; write a whole number without a unit, such as 4")]
    Mebibytes(String),
    /// Not backends in the notation of the command line.
    #[error("\"{0}\" names no backends; write static://host:port,host:port or dns://name:port")]
    Backends(String),
    /// Not a number of threads.
    #[error("\"{0}\" is not a number of threads; write auto, or a number from 1 up")]
    Threads(String),
    /// Not a supported version of TLS.
    #[error("\"{0}\" is not a supported TLS version; write 1.2 or 1.3")]
    TlsVersion(String),
    /// An address without a port, and a port to suggest.
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

/// Removes the rounding error of floating-point numbers. Durations above a second have no meaningful part below a
/// microsecond.
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
        number.and_then(|number| number.checked_mul(unit)).map(Self).ok_or_else(|| match meant(text) {
            Some(meant) => ValueError::SizeUnit(text.to_owned(), meant),
            None => ValueError::Size(text.to_owned()),
        })
    }
}

/// Returns the size that was probably meant by a number with an unknown unit: `16MiB` for `16Mi` and `16mb`.
fn meant(text: &str) -> Option<String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, name) = [("k", "KiB"), ("m", "MiB"), ("g", "GiB")].into_iter().find(|(first, name)| {
        let known = [*first, &format!("{first}b"), &format!("{first}i"), &name.to_ascii_lowercase()].contains(&&*unit);
        known && !number.is_empty()
    })?;
    let (_, size) = SIZE_UNITS.iter().find(|(unit, _)| *unit == name)?;
    number.parse::<usize>().ok()?.checked_mul(*size)?;
    Some(format!("{number}{name}"))
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

impl Mebibytes {
    /// Returns this number of MiB.
    pub const fn of(mebibytes: usize) -> Self {
        Self { bytes: mebibytes.saturating_mul(MIB) }
    }

    /// Returns the number of MiB, rounded down.
    pub const fn mebibytes(self) -> usize {
        self.bytes / MIB
    }
}

impl FromStr for Mebibytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number: Option<usize> = text.parse().ok();
        if let Some(bytes) = number.and_then(|number| number.checked_mul(MIB)) {
            return Ok(Self { bytes });
        }
        match text.parse().or_else(|_| meant(text).unwrap_or_default().parse()) {
            Ok(ByteSize(bytes)) if number.is_none() && bytes > MIB / 2 => {
                Err(ValueError::MebibytesUnit(text.to_owned(), (bytes + MIB / 2) / MIB))
            }
            _ => Err(ValueError::Mebibytes(text.to_owned())),
        }
    }
}

impl Setting for Mebibytes {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(TextVisitor { expecting: "a number of MiB such as 4", parse: Self::from_str })
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.mebibytes().serialize(to)
    }
}

impl Setting for Duration {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        GoDuration::read(from).map(|GoDuration(duration)| duration)
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        GoDuration(*self).print(to)
    }
}

impl Setting for Option<Mebibytes> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::<Read<Mebibytes>>::deserialize(from)?.map(|Read(size)| size))
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.map(Mebibytes::mebibytes).serialize(to)
    }
}

/// A time after which something happens; `0s` in the file means never.
impl Setting for Option<Duration> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Duration::read(from).map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.unwrap_or_default().print(to)
    }
}

impl Setting for FilePath {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_string(FilePathVisitor)
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

struct FilePathVisitor;

impl de::Visitor<'_> for FilePathVisitor {
    type Value = FilePath;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the path of a file, which is not empty; name a file, or leave the key out")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<FilePath, E> {
        // An unset variable must not switch off the check that the file is for.
        if text.trim().is_empty() { self.visit_unit() } else { Ok(FilePath(text.into())) }
    }

    fn visit_unit<E: de::Error>(self) -> Result<FilePath, E> {
        Err(E::custom("is empty; name a file, or leave the key out"))
    }
}

/// Implements [`Setting`] for types that serde reads and writes by itself.
macro_rules! as_serde {
    ($($Type:ty),* $(,)?) => {$(
        impl $crate::settings::section::Setting for $Type {
            fn read<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                serde::Deserialize::deserialize(from)
            }

            fn print<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                serde::Serialize::serialize(self, to)
            }
        }
    )*};
}
pub(super) use as_serde;

as_serde! { bool, u8, u16, u32, usize, f64, String, Vec<String>, Vec<u16>, Option<u16> }

/// Implements [`Setting`] for types that are printed with `Display`, and read with `FromStr` from text or a bare
/// number.
macro_rules! as_text {
    ($($Type:ty: $expecting:literal;)*) => {$(
        impl $crate::settings::section::Setting for $Type {
            fn read<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let parse = <$Type as std::str::FromStr>::from_str;
                from.deserialize_str($crate::settings::values::TextVisitor { expecting: $expecting, parse })
            }

            fn print<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    )*};
}
pub(super) use as_text;

as_text! {
    GoDuration: "a duration such as 200ms, 5s or 1m30s";
    ByteSize: "a size such as 16MiB or a number of bytes";
    WorkerThreads: "auto or a number of threads";
}

/// Reads a value from text, or from a number as if it were text.
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
    fn durations_are_read_in_gos_notation() {
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
    fn the_error_for_an_invalid_duration_shows_valid_ones() {
        assert_eq!(duration("5"), Err("\"5\" has no unit; write 5s or 5ms".into()));
        for bad in ["", "s", "5x", "-5s", "5s5", "1..2s", "five", "1e400s", "inf", "99999999999999999999h"] {
            let error = duration(bad).expect_err(bad);
            assert!(error.ends_with("write 200ms, 5s or 1m30s"), "{bad}: {error}");
        }
    }

    #[test]
    fn printed_durations_are_read_back() {
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
        let said = |text: &str| text.parse::<ByteSize>().expect_err(text).to_string();
        for (text, meant) in
            [("16Mi", "16MiB"), ("16mb", "16MiB"), ("64K", "64KiB"), ("1 gib", "1GiB"), ("16M", "16MiB")]
        {
            assert_eq!(said(text), format!("\"{text}\" has an unknown unit; write {meant}"));
        }
        for text in ["16x", "MiB", "1.5MiB", "99999999999999999999G"] {
            assert!(said(text).ends_with("is not a size; write 16MiB, 64KiB or a number of bytes"), "{text}");
        }
        assert_eq!(ByteSize(16 << 20).to_string(), "16MiB");
        assert_eq!(ByteSize(1500).to_string(), "1500B");
    }

    #[test]
    fn a_number_of_mib_has_no_unit_and_the_error_says_which_number_it_is() {
        let read = |text: &str| text.parse::<Mebibytes>().map(Mebibytes::mebibytes).map_err(|error| error.to_string());
        assert_eq!(read("4"), Ok(4));
        for (text, number) in [("4MiB", 4), ("16MB", 15), ("16Mi", 16), ("2GiB", 2048), ("1024KiB", 1)] {
            let expected = format!("\"{text}\" has a unit; the key is a number of MiB: write {number}");
            assert_eq!(read(text), Err(expected));
        }
        for text in ["", "-1", "4.5", "100B", "18446744073709551615", "many"] {
            let expected = format!("\"{text}\" is not a number of MiB; write a whole number without a unit, such as 4");
            assert_eq!(read(text), Err(expected));
        }
    }
}
