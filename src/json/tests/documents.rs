//! Generates export requests as JSON in many spellings, together with the protobuf message that each stands for.
//!
//! They are made from OTLP's descriptors and from a source of numbers, which may be a random seed or the bytes of a
//! fuzzer. `tests/fuzz` uses this module, too.

use std::{collections::HashMap, fmt::Write};

use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// How deep messages nest at most; prost reads no more than 100 levels.
const MAX_DEPTH: usize = 12;

/// The requests of all signals, in the order of `Signal::index`.
pub(crate) const REQUESTS: [&str; 4] = [
    ".opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest",
    ".opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceRequest",
    ".opentelemetry.proto.collector.logs.v1.ExportLogsServiceRequest",
    ".opentelemetry.proto.collector.profiles.v1development.ExportProfilesServiceRequest",
];

/// The types of OTLP by their names.
pub(crate) struct Types {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, EnumDescriptorProto>,
}

impl Types {
    pub(crate) fn load() -> Self {
        let mut types = Self { messages: HashMap::new(), enums: HashMap::new() };
        for file in FileDescriptorSet::decode(opentelemetry_proto::DESCRIPTORS).unwrap().file {
            let package = format!(".{}", file.package());
            for message in &file.message_type {
                types.add(&package, message);
            }
            types.add_enums(&package, &file.enum_type);
        }
        types
    }

    fn add(&mut self, within: &str, message: &DescriptorProto) {
        let name = format!("{within}.{}", message.name());
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
        self.add_enums(&name, &message.enum_type);
        self.messages.insert(name, message.clone());
    }

    fn add_enums(&mut self, within: &str, enums: &[EnumDescriptorProto]) {
        self.enums.extend(enums.iter().map(|of| (format!("{within}.{}", of.name()), of.clone())));
    }
}

/// Generates requests from a function that returns a number below a bound.
pub(crate) struct Documents<'t, F> {
    types: &'t Types,
    below: F,
    /// Whether only the most usual spelling of each value is used.
    is_plain: bool,
    json: String,
}

impl<'t, F: FnMut(usize) -> usize> Documents<'t, F> {
    pub(crate) fn new(types: &'t Types, is_plain: bool, below: F) -> Self {
        Self { types, below, is_plain, json: String::new() }
    }

    /// Returns a request of this type as JSON and as protobuf.
    pub(crate) fn request(&mut self, name: &str) -> (String, Vec<u8>) {
        self.json.clear();
        let message = self.message(name, 0);
        (std::mem::take(&mut self.json), message)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.below)(bound)
    }

    /// Returns true once in `many` calls, and never for plain documents.
    fn rarely(&mut self, many: usize) -> bool {
        !self.is_plain && self.below(many) == many - 1
    }

    fn space(&mut self) {
        if self.rarely(20) {
            self.json.push_str([" ", "\n", "\t \r\n"][(self.below)(3)]);
        }
    }

    fn token(&mut self, token: &str) {
        self.space();
        self.json.push_str(token);
        self.space();
    }

    fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        let descriptor = &self.types.messages[name];
        let mut fields: Vec<&FieldDescriptorProto> = descriptor.field.iter().collect();
        // JSON may have the members in any order; most programs write them in the order of their definition.
        if self.rarely(3) {
            for last in (1..fields.len()).rev() {
                let other = self.below(last + 1);
                fields.swap(last, other);
            }
        }
        self.token("{");
        let (mut out, mut set, mut is_first) = (Vec::new(), Vec::new(), true);
        for field in fields {
            let is_deep = depth >= MAX_DEPTH && field.r#type() == Type::Message;
            // A message at the top is there, or there would be little to see.
            let is_there = depth == 0 || self.below(3) > 0;
            let is_taken = field.oneof_index.is_some_and(|group| set.contains(&group));
            if !is_there || is_deep || is_taken {
                if self.rarely(15) {
                    self.separate(&mut is_first);
                    self.name(field.json_name());
                    self.token("null");
                }
                continue;
            }
            set.extend(field.oneof_index);
            self.separate(&mut is_first);
            self.name(field.json_name());
            out.extend(self.field(field, depth));
            if self.rarely(10) {
                self.separate(&mut is_first);
                self.unknown();
            }
        }
        self.token("}");
        out
    }

    fn separate(&mut self, is_first: &mut bool) {
        if !std::mem::take(is_first) {
            self.token(",");
        }
    }

    fn name(&mut self, name: &str) {
        self.space();
        self.string(name);
        self.token(":");
    }

    fn unknown(&mut self) {
        let value = self.below(6);
        self.name(["trace_id", "Name", "new"][value % 3]);
        self.token(
            ["null", "[{},[1.5e3,\"a\"]]", "{\"a\":{\"b\":true},\"c\":[]}", "-1", "\"\\ud800\"", "false"][value],
        );
    }

    fn field(&mut self, field: &FieldDescriptorProto, depth: usize) -> Vec<u8> {
        let mut out = Vec::new();
        if field.label() != Label::Repeated {
            let (wire, value) = self.value(field, depth);
            put(&mut out, field, wire, &value);
            return out;
        }
        self.token("[");
        let len = if self.rarely(30) { 40 } else { self.below(4) };
        let (mut packed, mut is_first, mut is_packed) = (Vec::new(), true, false);
        for _ in 0..len {
            self.separate(&mut is_first);
            let (wire, value) = self.value(field, depth);
            is_packed = wire != WireType::LengthDelimited;
            if is_packed {
                packed.extend(value);
            } else {
                put(&mut out, field, wire, &value);
            }
        }
        if is_packed {
            put(&mut out, field, WireType::LengthDelimited, &packed);
        }
        self.token("]");
        out
    }

    /// Writes a value. Returns what protobuf has for it.
    fn value(&mut self, field: &FieldDescriptorProto, depth: usize) -> (WireType, Vec<u8>) {
        match field.r#type() {
            Type::Message => (WireType::LengthDelimited, self.message(field.type_name(), depth + 1)),
            Type::String => {
                let text = self.text();
                self.string(&text);
                (WireType::LengthDelimited, text.into_bytes())
            }
            Type::Bytes => (WireType::LengthDelimited, self.bytes(field.name())),
            Type::Bool => {
                let value = self.below(2);
                self.token(["false", "true"][value]);
                (WireType::Varint, vec![u8::try_from(value).unwrap()])
            }
            Type::Double => {
                let value = self.double();
                (WireType::SixtyFourBit, value.to_le_bytes().to_vec())
            }
            Type::Enum => {
                let values = &self.types.enums[field.type_name()].value;
                let value = &values[(self.below)(values.len())];
                if self.rarely(3) {
                    self.string(value.name())
                } else {
                    self.integer(i128::from(value.number()), false)
                }
                (WireType::Varint, varint(i64::from(value.number()).cast_unsigned()))
            }
            Type::Fixed64 => {
                self.number(0, u64::MAX.into(), |value| (WireType::SixtyFourBit, value.to_le_bytes()[..8].into()))
            }
            Type::Sfixed64 => self.number(i64::MIN.into(), i64::MAX.into(), |value| {
                (WireType::SixtyFourBit, value.to_le_bytes()[..8].into())
            }),
            Type::Fixed32 => {
                self.number(0, u32::MAX.into(), |value| (WireType::ThirtyTwoBit, value.to_le_bytes()[..4].into()))
            }
            Type::Uint64 => self.number(0, u64::MAX.into(), |value| (WireType::Varint, varint(low(value)))),
            Type::Uint32 => self.number(0, u32::MAX.into(), |value| (WireType::Varint, varint(low(value)))),
            Type::Int64 => {
                self.number(i64::MIN.into(), i64::MAX.into(), |value| (WireType::Varint, varint(low(value))))
            }
            Type::Int32 => {
                self.number(i32::MIN.into(), i32::MAX.into(), |value| (WireType::Varint, varint(low(value))))
            }
            Type::Sint32 => self.number(i32::MIN.into(), i32::MAX.into(), |value| {
                let zigzag = if value < 0 { -2 * value - 1 } else { 2 * value };
                (WireType::Varint, varint(low(zigzag)))
            }),
            other => panic!("OTLP has no {other:?}"),
        }
    }

    fn number(&mut self, least: i128, most: i128, wire: impl Fn(i128) -> (WireType, Vec<u8>)) -> (WireType, Vec<u8>) {
        let bits = u32::try_from(self.below(65)).unwrap();
        let random = (0..8).fold(0_i128, |value, _| value << 8 | i128::try_from(self.below(256)).unwrap());
        let value = match self.below(6) {
            0 => 0,
            1 => least,
            2 => most,
            3 => -(random >> bits),
            _ => random >> bits,
        };
        let value = value.clamp(least, most);
        self.integer(value, most > i128::from(u32::MAX));
        wire(value)
    }

    fn integer(&mut self, value: i128, is_long: bool) {
        let usual = if is_long { format!("\"{value}\"") } else { value.to_string() };
        let spelling = if self.is_plain { 0 } else { self.below(8) };
        let text = match spelling {
            0 => value.to_string(),
            1 => format!("\"{value}\""),
            2 => format!("{value}.000"),
            3 => format!("{value}e0"),
            4 => format!("\"{value}0E-1\""),
            5 if value % 100 == 0 => format!("{}e+2", value / 100),
            _ => usual.clone(),
        };
        self.token(if self.is_plain { &usual } else { &text });
    }

    fn double(&mut self) -> f64 {
        let bits = (0..8).fold(0_u64, |value, _| value << 8 | self.below(256) as u64);
        let value = match self.below(8) {
            0 => 0.0,
            1 => 1.0,
            2 => -2.5,
            3 if !self.is_plain => f64::INFINITY,
            4 if !self.is_plain => f64::NEG_INFINITY,
            // serde_json reads a number of many digits as one of its neighbours at times.
            _ if self.is_plain => f64::from(u16::try_from(bits & 0xffff).unwrap()) / 8.0,
            _ => f64::from_bits(bits),
        };
        let value = if value.is_nan() { 3.25 } else { value };
        let text = match value {
            f64::INFINITY => "\"Infinity\"".to_owned(),
            f64::NEG_INFINITY => "\"-Infinity\"".to_owned(),
            // Without a fraction, some readers take it for an integer, and this many digits do not fit one.
            value if self.is_plain || self.below(2) == 0 => format!("{value:e}"),
            value => format!("\"{value:?}\""),
        };
        self.token(&text);
        value
    }

    fn text(&mut self) -> String {
        let len = if self.rarely(20) { self.below(300) } else { self.below(12) };
        let letters = ['a', 'Z', '0', ' ', '/', '.', 'é', '€', '😀', '"', '\\', '\n', '\u{1}', '\u{7f}', '{', ':'];
        (0..len).map(|_| letters[self.below(letters.len())]).collect()
    }

    /// Writes text with the escapes that are needed and with some that are not.
    fn string(&mut self, text: &str) {
        self.json.push('"');
        for letter in text.chars() {
            match letter {
                '"' | '\\' => {
                    self.json.push('\\');
                    self.json.push(letter);
                }
                '\n' => self.json.push_str("\\n"),
                '/' if self.rarely(2) => self.json.push_str("\\/"),
                letter if letter < ' ' || self.rarely(40) => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        write!(self.json, "\\u{unit:04x}").unwrap();
                    }
                }
                letter => self.json.push(letter),
            }
        }
        self.json.push('"');
    }

    fn bytes(&mut self, name: &str) -> Vec<u8> {
        let hex_len = match name {
            "trace_id" | "profile_id" => Some(16),
            "span_id" | "parent_span_id" => Some(8),
            _ => None,
        };
        let len = hex_len.unwrap_or_else(|| self.below(9));
        let len = if self.below(6) == 0 { 0 } else { len };
        let bytes: Vec<u8> = (0..len).map(|_| u8::try_from(self.below(256)).unwrap()).collect();
        let is_hex = hex_len.is_some() && (name != "profile_id" || self.is_plain || self.below(2) == 0);
        let text = if is_hex { self.hex(&bytes) } else { self.base64(&bytes) };
        self.string(&text);
        bytes
    }

    fn hex(&mut self, bytes: &[u8]) -> String {
        let lower: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.rarely(3) { lower.to_uppercase() } else { lower }
    }

    fn base64(&mut self, bytes: &[u8]) -> String {
        let is_url = self.rarely(3);
        let digits: Vec<char> =
            ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(if is_url { ['-', '_'] } else { ['+', '/'] }).collect();
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let bits = group.iter().chain([0; 3].iter()).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
            for digit in 0..=group.len() {
                text.push(digits[bits >> (18 - 6 * digit) & 63]);
            }
        }
        if !self.rarely(3) {
            text.extend(std::iter::repeat_n('=', (4 - text.len() % 4) % 4));
        }
        text
    }
}

/// Returns the low 64 bits.
fn low(value: i128) -> u64 {
    u64::from_le_bytes(*value.to_le_bytes().first_chunk().unwrap())
}

fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(value, &mut out);
    out
}

fn put(out: &mut Vec<u8>, field: &FieldDescriptorProto, wire: WireType, value: &[u8]) {
    encode_key(u32::try_from(field.number()).unwrap(), wire, out);
    if wire == WireType::LengthDelimited {
        encode_varint(value.len() as u64, out);
    }
    out.extend_from_slice(value);
}
