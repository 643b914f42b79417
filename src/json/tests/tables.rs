//! Compares the tables with OTLP's descriptors, and writes them anew if told to.

use std::{collections::VecDeque, fmt::Write, fs, path::Path};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

const HEAD: &str = "\
//! The messages of OTLP and their fields, made from the descriptors of `opentelemetry-proto` 0.33 by the test
//! `the_tables_are_those_of_the_descriptors`: `UPDATE_TABLES=1 cargo test --lib -- json::tests::tables`. Do not edit.

use super::schema::{
    Enum, Field,
    Int::{Fixed32, Fixed64, Int32, Int64, Sfixed64, Sint32, Uint32, Uint64},
    Kind::{Bool, Bytes, Double, Enumerated, Hex, Int, Nested, ProfileId, String},
    Message,
};
";

const REQUESTS: [&str; 4] = [
    ".opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest",
    ".opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceRequest",
    ".opentelemetry.proto.collector.logs.v1.ExportLogsServiceRequest",
    ".opentelemetry.proto.collector.profiles.v1development.ExportProfilesServiceRequest",
];

#[test]
fn the_tables_are_those_of_the_descriptors() {
    let tables = generate();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/json/tables.rs");
    if std::env::var_os("UPDATE_TABLES").is_some() {
        fs::write(&file, &tables).unwrap();
    }
    let found = fs::read_to_string(file).unwrap();
    assert!(found == tables, "OTLP has changed: UPDATE_TABLES=1 cargo test --lib -- json::tests::tables");
}

/// All messages and enumerations by their full names.
#[derive(Default)]
struct Known {
    messages: Vec<(String, DescriptorProto)>,
    enums: Vec<(String, EnumDescriptorProto)>,
}

impl Known {
    fn add(&mut self, within: &str, message: &DescriptorProto) {
        let name = format!("{within}.{}", message.name());
        self.messages.push((name.clone(), message.clone()));
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
        self.add_enums(&name, &message.enum_type);
    }

    fn add_enums(&mut self, within: &str, enums: &[EnumDescriptorProto]) {
        self.enums.extend(enums.iter().map(|of| (format!("{within}.{}", of.name()), of.clone())));
    }

    fn message(&self, name: &str) -> &DescriptorProto {
        &self.messages.iter().find(|(known, _)| known == name).unwrap().1
    }
}

fn generate() -> String {
    let set = FileDescriptorSet::decode(opentelemetry_proto::DESCRIPTORS).unwrap();
    let mut known = Known::default();
    for file in &set.file {
        let package = format!(".{}", file.package());
        file.message_type.iter().for_each(|message| known.add(&package, message));
        known.add_enums(&package, &file.enum_type);
    }
    let (mut messages, mut enums) = (Vec::new(), Vec::new());
    let mut waiting: VecDeque<String> = REQUESTS.map(str::to_owned).into();
    while let Some(name) = waiting.pop_front() {
        if messages.contains(&name) {
            continue;
        }
        for field in &known.message(&name).field {
            match field.r#type() {
                Type::Message => waiting.push_back(field.type_name().to_owned()),
                Type::Enum if !enums.contains(&field.type_name()) => enums.push(field.type_name()),
                _ => {}
            }
        }
        messages.push(name);
    }
    let messages: Vec<_> = messages.iter().map(|name| (name.as_str(), known.message(name))).collect();
    let mut text = HEAD.to_owned();
    write_messages(&mut text, &messages);
    for name in enums {
        let values = &known.enums.iter().find(|(known, _)| known == name).unwrap().1.value;
        writeln!(text, "\nstatic {}: Enum = Enum(&[", constant(name)).unwrap();
        for value in values {
            writeln!(text, "    (\"{}\", {}),", value.name(), value.number()).unwrap();
        }
        writeln!(text, "]);").unwrap();
    }
    text
}

fn write_messages(text: &mut String, messages: &[(&str, &DescriptorProto)]) {
    let slots: usize = messages.iter().map(|(_, message)| 1 + message.field.len()).sum();
    writeln!(text, "\n/// The number of messages.\npub(super) const MESSAGES: usize = {};", messages.len()).unwrap();
    writeln!(text, "\n/// The number of messages and fields.\npub(super) const SLOTS: usize = {slots};").unwrap();
    let mut slot = 0;
    for (index, (name, message)) in messages.iter().enumerate() {
        let constant = constant(name);
        writeln!(text, "\npub(super) static {constant}: Message = Message::new({index}, {slot}, &[").unwrap();
        for field in &message.field {
            writeln!(text, "    {},", entry(field)).unwrap();
        }
        writeln!(text, "]);").unwrap();
        assert!(message.field.len() <= 32, "a frame has a bit for each");
        slot += 1 + message.field.len();
    }
}

fn entry(field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message => format!("Nested(&{})", constant(field.type_name())),
        Type::Enum => format!("Enumerated(&{})", constant(field.type_name())),
        Type::Bytes => match field.name() {
            "trace_id" => "Hex(16)",
            "span_id" | "parent_span_id" => "Hex(8)",
            "profile_id" => "ProfileId",
            _ => "Bytes",
        }
        .to_owned(),
        Type::String => "String".to_owned(),
        Type::Bool => "Bool".to_owned(),
        Type::Double => "Double".to_owned(),
        other => {
            let name = other.as_str_name().trim_start_matches("TYPE_");
            format!("Int({}{})", &name[..1], name[1..].to_lowercase())
        }
    };
    let how = match field {
        field if field.label() == Label::Repeated => "many",
        field if field.oneof_index.is_some() => "set",
        _ => "one",
    };
    format!("Field::{how}(\"{}\", {}, {kind})", field.json_name(), field.number())
}

/// Returns the name of the constant for a type: `.opentelemetry.proto.trace.v1.Span.SpanKind` is `SPAN_SPAN_KIND`.
fn constant(name: &str) -> String {
    let mut words = Vec::new();
    for part in name.split('.').filter(|part| part.starts_with(char::is_uppercase)) {
        for letter in part.chars() {
            if letter.is_uppercase() {
                words.push(String::new());
            }
            words.last_mut().unwrap().push(letter.to_ascii_uppercase());
        }
    }
    words.join("_")
}
