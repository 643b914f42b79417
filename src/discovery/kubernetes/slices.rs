//! What discovery reads of EndpointSlices (`discovery.k8s.io/v1`), lists of them, and events of a watch. Other fields
//! are skipped while JSON is read, so that they take no memory.

use serde::{Deserialize, Deserializer};

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct List {
    /// The version of the list, and where its next page begins.
    #[serde(default)]
    pub(super) metadata: ListMeta,
    /// The slices of this page.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) items: Vec<Slice>,
}

/// The metadata of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    /// The version from which a watch continues.
    pub(super) resource_version: String,
    /// Where the next page begins; empty on the last page.
    pub(super) r#continue: String,
}

/// An EndpointSlice: a part of the endpoints of a Service, all of one address family.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Slice {
    /// Its name and version.
    pub(super) metadata: Meta,
    /// The family of its addresses.
    pub(super) address_type: AddressType,
    /// Its endpoints. The API server writes `null` for none.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) endpoints: Vec<Member>,
}

/// The metadata of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    /// The name, unique in its namespace.
    pub(super) name: String,
    /// The version from which a watch continues after this object.
    pub(super) resource_version: String,
}

/// The family of a slice's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum AddressType {
    /// IPv4 addresses.
    IPv4,
    /// IPv6 addresses.
    IPv6,
    /// Host names, which Kubernetes itself does not write and kube-proxy does not use, or an unknown kind.
    #[serde(other)]
    Other,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Member {
    /// Its addresses, of which only the first one is to be used.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) addresses: Vec<String>,
    /// Its state.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) conditions: Conditions,
    /// The pod's host name, if it has one under this Service, as the pods of a StatefulSet do.
    pub(super) hostname: Option<String>,
    /// The pod.
    pub(super) target_ref: Option<TargetRef>,
}

/// The state of an endpoint. Missing conditions have the meanings that the API documents. `serving` is not read: unless the
/// endpoint terminates, it says the same as `ready`, and one that terminates drains in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    /// Whether it takes new traffic. Missing means that it does. With `publishNotReadyAddresses` it is always true.
    pub(super) ready: Option<bool>,
    /// Whether it is about to end. Missing means that it is not.
    pub(super) terminating: Option<bool>,
}

/// The object behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct TargetRef {
    /// Its name.
    pub(super) name: String,
    /// Its unique ID, which no later object of the same name has.
    pub(super) uid: String,
}

/// An event of a watch.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Event {
    /// A slice is new.
    Added(Slice),
    /// A slice has changed.
    Modified(Slice),
    /// A slice is gone, or does not belong to the Service any more.
    Deleted(Slice),
    /// Nothing happened up to this version.
    Bookmark(Bookmark),
    /// The watch ends with an error.
    Error(Status),
}

/// A version without a change.
#[derive(Debug, Deserialize)]
pub(super) struct Bookmark {
    /// The version.
    pub(super) metadata: Meta,
}

/// An error of the API server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    /// The HTTP status.
    pub(super) code: u16,
    /// What is wrong.
    pub(super) message: String,
}

fn null_is_empty<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
