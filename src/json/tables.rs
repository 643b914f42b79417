//! The messages of OTLP and their fields, made from the descriptors of `opentelemetry-proto` 0.33 by the test
//! `the_tables_are_those_of_the_descriptors`: `UPDATE_TABLES=1 cargo test --lib -- json::tests::tables`. Do not edit.

use super::schema::{
    Enum, Field,
    Int::{Fixed32, Fixed64, Int32, Int64, Sfixed64, Sint32, Uint32, Uint64},
    Kind::{Bool, Bytes, Double, Enumerated, Hex, Int, Nested, ProfileId, String},
    Message,
};

/// The number of messages.
pub(super) const MESSAGES: usize = 48;

/// The number of messages and fields.
pub(super) const SLOTS: usize = 254;

pub(super) static EXPORT_TRACE_SERVICE_REQUEST: Message = Message::new(0, 0, &[
    Field::many("resourceSpans", 1, Nested(&RESOURCE_SPANS)),
]);

pub(super) static EXPORT_METRICS_SERVICE_REQUEST: Message = Message::new(1, 2, &[
    Field::many("resourceMetrics", 1, Nested(&RESOURCE_METRICS)),
]);

pub(super) static EXPORT_LOGS_SERVICE_REQUEST: Message = Message::new(2, 4, &[
    Field::many("resourceLogs", 1, Nested(&RESOURCE_LOGS)),
]);

pub(super) static EXPORT_PROFILES_SERVICE_REQUEST: Message = Message::new(3, 6, &[
    Field::many("resourceProfiles", 1, Nested(&RESOURCE_PROFILES)),
    Field::one("dictionary", 2, Nested(&PROFILES_DICTIONARY)),
]);

pub(super) static RESOURCE_SPANS: Message = Message::new(4, 9, &[
    Field::one("resource", 1, Nested(&RESOURCE)),
    Field::many("scopeSpans", 2, Nested(&SCOPE_SPANS)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static RESOURCE_METRICS: Message = Message::new(5, 13, &[
    Field::one("resource", 1, Nested(&RESOURCE)),
    Field::many("scopeMetrics", 2, Nested(&SCOPE_METRICS)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static RESOURCE_LOGS: Message = Message::new(6, 17, &[
    Field::one("resource", 1, Nested(&RESOURCE)),
    Field::many("scopeLogs", 2, Nested(&SCOPE_LOGS)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static RESOURCE_PROFILES: Message = Message::new(7, 21, &[
    Field::one("resource", 1, Nested(&RESOURCE)),
    Field::many("scopeProfiles", 2, Nested(&SCOPE_PROFILES)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static PROFILES_DICTIONARY: Message = Message::new(8, 25, &[
    Field::many("mappingTable", 1, Nested(&MAPPING)),
    Field::many("locationTable", 2, Nested(&LOCATION)),
    Field::many("functionTable", 3, Nested(&FUNCTION)),
    Field::many("linkTable", 4, Nested(&LINK)),
    Field::many("stringTable", 5, String),
    Field::many("attributeTable", 6, Nested(&KEY_VALUE_AND_UNIT)),
    Field::many("stackTable", 7, Nested(&STACK)),
]);

pub(super) static RESOURCE: Message = Message::new(9, 33, &[
    Field::many("attributes", 1, Nested(&KEY_VALUE)),
    Field::one("droppedAttributesCount", 2, Int(Uint32)),
    Field::many("entityRefs", 3, Nested(&ENTITY_REF)),
]);

pub(super) static SCOPE_SPANS: Message = Message::new(10, 37, &[
    Field::one("scope", 1, Nested(&INSTRUMENTATION_SCOPE)),
    Field::many("spans", 2, Nested(&SPAN)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static SCOPE_METRICS: Message = Message::new(11, 41, &[
    Field::one("scope", 1, Nested(&INSTRUMENTATION_SCOPE)),
    Field::many("metrics", 2, Nested(&METRIC)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static SCOPE_LOGS: Message = Message::new(12, 45, &[
    Field::one("scope", 1, Nested(&INSTRUMENTATION_SCOPE)),
    Field::many("logRecords", 2, Nested(&LOG_RECORD)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static SCOPE_PROFILES: Message = Message::new(13, 49, &[
    Field::one("scope", 1, Nested(&INSTRUMENTATION_SCOPE)),
    Field::many("profiles", 2, Nested(&PROFILE)),
    Field::one("schemaUrl", 3, String),
]);

pub(super) static MAPPING: Message = Message::new(14, 53, &[
    Field::one("memoryStart", 1, Int(Uint64)),
    Field::one("memoryLimit", 2, Int(Uint64)),
    Field::one("fileOffset", 3, Int(Uint64)),
    Field::one("filenameStrindex", 4, Int(Int32)),
    Field::many("attributeIndices", 5, Int(Int32)),
]);

pub(super) static LOCATION: Message = Message::new(15, 59, &[
    Field::one("mappingIndex", 1, Int(Int32)),
    Field::one("address", 2, Int(Uint64)),
    Field::many("lines", 3, Nested(&LINE)),
    Field::many("attributeIndices", 4, Int(Int32)),
]);

pub(super) static FUNCTION: Message = Message::new(16, 64, &[
    Field::one("nameStrindex", 1, Int(Int32)),
    Field::one("systemNameStrindex", 2, Int(Int32)),
    Field::one("filenameStrindex", 3, Int(Int32)),
    Field::one("startLine", 4, Int(Int64)),
]);

pub(super) static LINK: Message = Message::new(17, 69, &[
    Field::one("traceId", 1, Hex(16)),
    Field::one("spanId", 2, Hex(8)),
]);

pub(super) static KEY_VALUE_AND_UNIT: Message = Message::new(18, 72, &[
    Field::one("keyStrindex", 1, Int(Int32)),
    Field::one("value", 2, Nested(&ANY_VALUE)),
    Field::one("unitStrindex", 3, Int(Int32)),
]);

pub(super) static STACK: Message = Message::new(19, 76, &[
    Field::many("locationIndices", 1, Int(Int32)),
]);

pub(super) static KEY_VALUE: Message = Message::new(20, 78, &[
    Field::one("key", 1, String),
    Field::one("value", 2, Nested(&ANY_VALUE)),
    Field::one("keyStrindex", 3, Int(Int32)),
]);

pub(super) static ENTITY_REF: Message = Message::new(21, 82, &[
    Field::one("schemaUrl", 1, String),
    Field::one("type", 2, String),
    Field::many("idKeys", 3, String),
    Field::many("descriptionKeys", 4, String),
]);

pub(super) static INSTRUMENTATION_SCOPE: Message = Message::new(22, 87, &[
    Field::one("name", 1, String),
    Field::one("version", 2, String),
    Field::many("attributes", 3, Nested(&KEY_VALUE)),
    Field::one("droppedAttributesCount", 4, Int(Uint32)),
]);

pub(super) static SPAN: Message = Message::new(23, 92, &[
    Field::one("traceId", 1, Hex(16)),
    Field::one("spanId", 2, Hex(8)),
    Field::one("traceState", 3, String),
    Field::one("parentSpanId", 4, Hex(8)),
    Field::one("flags", 16, Int(Fixed32)),
    Field::one("name", 5, String),
    Field::one("kind", 6, Enumerated(&SPAN_SPAN_KIND)),
    Field::one("startTimeUnixNano", 7, Int(Fixed64)),
    Field::one("endTimeUnixNano", 8, Int(Fixed64)),
    Field::many("attributes", 9, Nested(&KEY_VALUE)),
    Field::one("droppedAttributesCount", 10, Int(Uint32)),
    Field::many("events", 11, Nested(&SPAN_EVENT)),
    Field::one("droppedEventsCount", 12, Int(Uint32)),
    Field::many("links", 13, Nested(&SPAN_LINK)),
    Field::one("droppedLinksCount", 14, Int(Uint32)),
    Field::one("status", 15, Nested(&STATUS)),
]);

pub(super) static METRIC: Message = Message::new(24, 109, &[
    Field::one("name", 1, String),
    Field::one("description", 2, String),
    Field::one("unit", 3, String),
    Field::set("gauge", 5, Nested(&GAUGE)),
    Field::set("sum", 7, Nested(&SUM)),
    Field::set("histogram", 9, Nested(&HISTOGRAM)),
    Field::set("exponentialHistogram", 10, Nested(&EXPONENTIAL_HISTOGRAM)),
    Field::set("summary", 11, Nested(&SUMMARY)),
    Field::many("metadata", 12, Nested(&KEY_VALUE)),
]);

pub(super) static LOG_RECORD: Message = Message::new(25, 119, &[
    Field::one("timeUnixNano", 1, Int(Fixed64)),
    Field::one("observedTimeUnixNano", 11, Int(Fixed64)),
    Field::one("severityNumber", 2, Enumerated(&SEVERITY_NUMBER)),
    Field::one("severityText", 3, String),
    Field::one("body", 5, Nested(&ANY_VALUE)),
    Field::many("attributes", 6, Nested(&KEY_VALUE)),
    Field::one("droppedAttributesCount", 7, Int(Uint32)),
    Field::one("flags", 8, Int(Fixed32)),
    Field::one("traceId", 9, Hex(16)),
    Field::one("spanId", 10, Hex(8)),
    Field::one("eventName", 12, String),
]);

pub(super) static PROFILE: Message = Message::new(26, 131, &[
    Field::one("sampleType", 1, Nested(&VALUE_TYPE)),
    Field::many("samples", 2, Nested(&SAMPLE)),
    Field::one("timeUnixNano", 3, Int(Fixed64)),
    Field::one("durationNano", 4, Int(Uint64)),
    Field::one("periodType", 5, Nested(&VALUE_TYPE)),
    Field::one("period", 6, Int(Int64)),
    Field::one("profileId", 7, ProfileId),
    Field::one("droppedAttributesCount", 8, Int(Uint32)),
    Field::one("originalPayloadFormat", 9, String),
    Field::one("originalPayload", 10, Bytes),
    Field::many("attributeIndices", 11, Int(Int32)),
]);

pub(super) static LINE: Message = Message::new(27, 143, &[
    Field::one("functionIndex", 1, Int(Int32)),
    Field::one("line", 2, Int(Int64)),
    Field::one("column", 3, Int(Int64)),
]);

pub(super) static ANY_VALUE: Message = Message::new(28, 147, &[
    Field::set("stringValue", 1, String),
    Field::set("boolValue", 2, Bool),
    Field::set("intValue", 3, Int(Int64)),
    Field::set("doubleValue", 4, Double),
    Field::set("arrayValue", 5, Nested(&ARRAY_VALUE)),
    Field::set("kvlistValue", 6, Nested(&KEY_VALUE_LIST)),
    Field::set("bytesValue", 7, Bytes),
    Field::set("stringValueStrindex", 8, Int(Int32)),
]);

pub(super) static SPAN_EVENT: Message = Message::new(29, 156, &[
    Field::one("timeUnixNano", 1, Int(Fixed64)),
    Field::one("name", 2, String),
    Field::many("attributes", 3, Nested(&KEY_VALUE)),
    Field::one("droppedAttributesCount", 4, Int(Uint32)),
]);

pub(super) static SPAN_LINK: Message = Message::new(30, 161, &[
    Field::one("traceId", 1, Hex(16)),
    Field::one("spanId", 2, Hex(8)),
    Field::one("traceState", 3, String),
    Field::many("attributes", 4, Nested(&KEY_VALUE)),
    Field::one("droppedAttributesCount", 5, Int(Uint32)),
    Field::one("flags", 6, Int(Fixed32)),
]);

pub(super) static STATUS: Message = Message::new(31, 168, &[
    Field::one("message", 2, String),
    Field::one("code", 3, Enumerated(&STATUS_STATUS_CODE)),
]);

pub(super) static GAUGE: Message = Message::new(32, 171, &[
    Field::many("dataPoints", 1, Nested(&NUMBER_DATA_POINT)),
]);

pub(super) static SUM: Message = Message::new(33, 173, &[
    Field::many("dataPoints", 1, Nested(&NUMBER_DATA_POINT)),
    Field::one("aggregationTemporality", 2, Enumerated(&AGGREGATION_TEMPORALITY)),
    Field::one("isMonotonic", 3, Bool),
]);

pub(super) static HISTOGRAM: Message = Message::new(34, 177, &[
    Field::many("dataPoints", 1, Nested(&HISTOGRAM_DATA_POINT)),
    Field::one("aggregationTemporality", 2, Enumerated(&AGGREGATION_TEMPORALITY)),
]);

pub(super) static EXPONENTIAL_HISTOGRAM: Message = Message::new(35, 180, &[
    Field::many("dataPoints", 1, Nested(&EXPONENTIAL_HISTOGRAM_DATA_POINT)),
    Field::one("aggregationTemporality", 2, Enumerated(&AGGREGATION_TEMPORALITY)),
]);

pub(super) static SUMMARY: Message = Message::new(36, 183, &[
    Field::many("dataPoints", 1, Nested(&SUMMARY_DATA_POINT)),
]);

pub(super) static VALUE_TYPE: Message = Message::new(37, 185, &[
    Field::one("typeStrindex", 1, Int(Int32)),
    Field::one("unitStrindex", 2, Int(Int32)),
]);

pub(super) static SAMPLE: Message = Message::new(38, 188, &[
    Field::one("stackIndex", 1, Int(Int32)),
    Field::many("attributeIndices", 2, Int(Int32)),
    Field::one("linkIndex", 3, Int(Int32)),
    Field::many("values", 4, Int(Int64)),
    Field::many("timestampsUnixNano", 5, Int(Fixed64)),
]);

pub(super) static ARRAY_VALUE: Message = Message::new(39, 194, &[
    Field::many("values", 1, Nested(&ANY_VALUE)),
]);

pub(super) static KEY_VALUE_LIST: Message = Message::new(40, 196, &[
    Field::many("values", 1, Nested(&KEY_VALUE)),
]);

pub(super) static NUMBER_DATA_POINT: Message = Message::new(41, 198, &[
    Field::many("attributes", 7, Nested(&KEY_VALUE)),
    Field::one("startTimeUnixNano", 2, Int(Fixed64)),
    Field::one("timeUnixNano", 3, Int(Fixed64)),
    Field::set("asDouble", 4, Double),
    Field::set("asInt", 6, Int(Sfixed64)),
    Field::many("exemplars", 5, Nested(&EXEMPLAR)),
    Field::one("flags", 8, Int(Uint32)),
]);

pub(super) static HISTOGRAM_DATA_POINT: Message = Message::new(42, 206, &[
    Field::many("attributes", 9, Nested(&KEY_VALUE)),
    Field::one("startTimeUnixNano", 2, Int(Fixed64)),
    Field::one("timeUnixNano", 3, Int(Fixed64)),
    Field::one("count", 4, Int(Fixed64)),
    Field::set("sum", 5, Double),
    Field::many("bucketCounts", 6, Int(Fixed64)),
    Field::many("explicitBounds", 7, Double),
    Field::many("exemplars", 8, Nested(&EXEMPLAR)),
    Field::one("flags", 10, Int(Uint32)),
    Field::set("min", 11, Double),
    Field::set("max", 12, Double),
]);

pub(super) static EXPONENTIAL_HISTOGRAM_DATA_POINT: Message = Message::new(43, 218, &[
    Field::many("attributes", 1, Nested(&KEY_VALUE)),
    Field::one("startTimeUnixNano", 2, Int(Fixed64)),
    Field::one("timeUnixNano", 3, Int(Fixed64)),
    Field::one("count", 4, Int(Fixed64)),
    Field::set("sum", 5, Double),
    Field::one("scale", 6, Int(Sint32)),
    Field::one("zeroCount", 7, Int(Fixed64)),
    Field::one("positive", 8, Nested(&EXPONENTIAL_HISTOGRAM_DATA_POINT_BUCKETS)),
    Field::one("negative", 9, Nested(&EXPONENTIAL_HISTOGRAM_DATA_POINT_BUCKETS)),
    Field::one("flags", 10, Int(Uint32)),
    Field::many("exemplars", 11, Nested(&EXEMPLAR)),
    Field::set("min", 12, Double),
    Field::set("max", 13, Double),
    Field::one("zeroThreshold", 14, Double),
]);

pub(super) static SUMMARY_DATA_POINT: Message = Message::new(44, 233, &[
    Field::many("attributes", 7, Nested(&KEY_VALUE)),
    Field::one("startTimeUnixNano", 2, Int(Fixed64)),
    Field::one("timeUnixNano", 3, Int(Fixed64)),
    Field::one("count", 4, Int(Fixed64)),
    Field::one("sum", 5, Double),
    Field::many("quantileValues", 6, Nested(&SUMMARY_DATA_POINT_VALUE_AT_QUANTILE)),
    Field::one("flags", 8, Int(Uint32)),
]);

pub(super) static EXEMPLAR: Message = Message::new(45, 241, &[
    Field::many("filteredAttributes", 7, Nested(&KEY_VALUE)),
    Field::one("timeUnixNano", 2, Int(Fixed64)),
    Field::set("asDouble", 3, Double),
    Field::set("asInt", 6, Int(Sfixed64)),
    Field::one("spanId", 4, Hex(8)),
    Field::one("traceId", 5, Hex(16)),
]);

pub(super) static EXPONENTIAL_HISTOGRAM_DATA_POINT_BUCKETS: Message = Message::new(46, 248, &[
    Field::one("offset", 1, Int(Sint32)),
    Field::many("bucketCounts", 2, Int(Uint64)),
]);

pub(super) static SUMMARY_DATA_POINT_VALUE_AT_QUANTILE: Message = Message::new(47, 251, &[
    Field::one("quantile", 1, Double),
    Field::one("value", 2, Double),
]);

static SPAN_SPAN_KIND: Enum = Enum(&[
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
]);

static SEVERITY_NUMBER: Enum = Enum(&[
    ("SEVERITY_NUMBER_UNSPECIFIED", 0),
    ("SEVERITY_NUMBER_TRACE", 1),
    ("SEVERITY_NUMBER_TRACE2", 2),
    ("SEVERITY_NUMBER_TRACE3", 3),
    ("SEVERITY_NUMBER_TRACE4", 4),
    ("SEVERITY_NUMBER_DEBUG", 5),
    ("SEVERITY_NUMBER_DEBUG2", 6),
    ("SEVERITY_NUMBER_DEBUG3", 7),
    ("SEVERITY_NUMBER_DEBUG4", 8),
    ("SEVERITY_NUMBER_INFO", 9),
    ("SEVERITY_NUMBER_INFO2", 10),
    ("SEVERITY_NUMBER_INFO3", 11),
    ("SEVERITY_NUMBER_INFO4", 12),
    ("SEVERITY_NUMBER_WARN", 13),
    ("SEVERITY_NUMBER_WARN2", 14),
    ("SEVERITY_NUMBER_WARN3", 15),
    ("SEVERITY_NUMBER_WARN4", 16),
    ("SEVERITY_NUMBER_ERROR", 17),
    ("SEVERITY_NUMBER_ERROR2", 18),
    ("SEVERITY_NUMBER_ERROR3", 19),
    ("SEVERITY_NUMBER_ERROR4", 20),
    ("SEVERITY_NUMBER_FATAL", 21),
    ("SEVERITY_NUMBER_FATAL2", 22),
    ("SEVERITY_NUMBER_FATAL3", 23),
    ("SEVERITY_NUMBER_FATAL4", 24),
]);

static STATUS_STATUS_CODE: Enum = Enum(&[
    ("STATUS_CODE_UNSET", 0),
    ("STATUS_CODE_OK", 1),
    ("STATUS_CODE_ERROR", 2),
]);

static AGGREGATION_TEMPORALITY: Enum = Enum(&[
    ("AGGREGATION_TEMPORALITY_UNSPECIFIED", 0),
    ("AGGREGATION_TEMPORALITY_DELTA", 1),
    ("AGGREGATION_TEMPORALITY_CUMULATIVE", 2),
]);
