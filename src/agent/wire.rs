//! Owns the messages of `hostagent.v1.HostAgentService` as Connect writes them in JSON,
//! both directions: we write requests and read answers, a simulated agent the reverse.
//!
//! Never: I/O, decisions, model types other than ids in text. The rules of the wire are
//! those of protobuf's JSON: lowerCamelCase names (snake_case is read too), zero values
//! left out, `null` is the default of a field, 64-bit integers are strings (numbers are
//! read too), unknown fields are ignored. Called by `client`, `listing` and `sim`.

use crate::model::vocabulary;
use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// Path of the service; a method's name follows.
pub const SERVICE_PATH: &str = "/hostagent.v1.HostAgentService/";

/// Most bytes of one sandbox's metadata as compact JSON. Larger: what one agent says fills
/// our database. Smaller: the versions an agent reports about itself might not fit.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;

/// Where a message's metadata usually fits, so that it is read with one allocation.
const METADATA_BYTES_USUAL: usize = 160;

vocabulary! {
    /// What can be asked of an agent, by its name in the path.
    Method, "agent method", {
        /// What it has, and what it paused by itself; telling makes it forget the latter.
        List = "ListSandboxes",
        /// Make a sandbox.
        Create = "CreateSandbox",
        /// Snapshot a sandbox and stop its microVM.
        Pause = "PauseSandbox",
        /// Start a microVM from a snapshot.
        Resume = "ResumeSandbox",
        /// Remove a sandbox and its snapshot.
        Destroy = "DestroySandbox",
        /// Reset a sandbox's idle timer.
        Ping = "PingSandbox",
        /// Make a template of a sandbox.
        CreateSnapshot = "CreateSnapshot",
        /// Remove a template.
        DeleteSnapshot = "DeleteSnapshot",
        /// Bytes of a template; newer agents only.
        TemplateSize = "GetTemplateSize",
        /// Destroy everything and exit.
        Terminate = "Terminate",
    }
}

vocabulary! {
    /// Why an agent refused, in Connect's words.
    ConnectCode, "Connect code", {
        /// The caller gave up.
        Canceled = "canceled",
        /// No better word.
        Unknown = "unknown",
        /// The request makes no sense to the agent.
        InvalidArgument = "invalid_argument",
        /// The agent ran out of time.
        DeadlineExceeded = "deadline_exceeded",
        /// No such sandbox.
        NotFound = "not_found",
        /// The sandbox is there already.
        AlreadyExists = "already_exists",
        /// Not allowed.
        PermissionDenied = "permission_denied",
        /// No room.
        ResourceExhausted = "resource_exhausted",
        /// Not in a state for this.
        FailedPrecondition = "failed_precondition",
        /// Stopped half-way, may be tried again.
        Aborted = "aborted",
        /// Beyond a limit.
        OutOfRange = "out_of_range",
        /// The agent does not know the method.
        Unimplemented = "unimplemented",
        /// Agents say this for nearly every failure.
        Internal = "internal",
        /// The agent is shutting down.
        Unavailable = "unavailable",
        /// Something is lost for good.
        DataLoss = "data_loss",
        /// The agent does not know who we are.
        Unauthenticated = "unauthenticated",
    }
}

impl ConnectCode {
    /// The HTTP status that carries this code.
    pub const fn http_status(self) -> u16 {
        match self {
            ConnectCode::Canceled => 499,
            ConnectCode::InvalidArgument
            | ConnectCode::FailedPrecondition
            | ConnectCode::OutOfRange => 400,
            ConnectCode::Unauthenticated => 401,
            ConnectCode::PermissionDenied => 403,
            ConnectCode::NotFound => 404,
            ConnectCode::AlreadyExists | ConnectCode::Aborted => 409,
            ConnectCode::ResourceExhausted => 429,
            ConnectCode::Unknown | ConnectCode::Internal | ConnectCode::DataLoss => 500,
            ConnectCode::Unimplemented => 501,
            ConnectCode::Unavailable => 503,
            ConnectCode::DeadlineExceeded => 504,
        }
    }
}

/// Body of every answer whose status is not 200.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ErrorBody<'a> {
    /// A [`ConnectCode`], if the agent keeps to the protocol.
    #[serde(borrow, deserialize_with = "text")]
    pub code: Cow<'a, str>,
    /// For people.
    #[serde(borrow, default, deserialize_with = "text", skip_serializing_if = "str::is_empty")]
    pub message: Cow<'a, str>,
}

/// The message without fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Empty<'a> {
    #[serde(skip)]
    nothing: PhantomData<&'a ()>,
}

/// Names a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub struct SandboxRef<'a> {
    /// Its id.
    #[serde(
        borrow,
        alias = "sandbox_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub sandbox_id: Cow<'a, str>,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub struct CreateSandboxRequest<'a> {
    /// Id of the new sandbox.
    #[serde(
        borrow,
        alias = "sandbox_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub sandbox_id: Cow<'a, str>,
    /// Name of the template.
    #[serde(borrow, deserialize_with = "text", skip_serializing_if = "str::is_empty")]
    pub template: Cow<'a, str>,
    /// Virtual processors.
    #[serde(deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub vcpus: i32,
    /// Memory in MiB.
    #[serde(alias = "memory_mb", deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub memory_mb: i32,
    /// Idle time in seconds after which the agent pauses it; 0 for never.
    #[serde(alias = "timeout_sec", deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub timeout_sec: i32,
    /// Disk in MiB.
    #[serde(alias = "disk_size_mb", deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub disk_size_mb: i32,
    /// Team as a hyphenated UUID.
    #[serde(
        borrow,
        alias = "team_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub team_id: Cow<'a, str>,
    /// Template as a hyphenated UUID.
    #[serde(
        borrow,
        alias = "template_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub template_id: Cow<'a, str>,
    /// User that commands run as.
    #[serde(
        borrow,
        alias = "default_user",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub default_user: Cow<'a, str>,
    /// Environment of commands.
    #[serde(
        alias = "default_env",
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub default_env: BTreeMap<String, String>,
}

/// What to start again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub struct ResumeSandboxRequest<'a> {
    /// Id of the paused sandbox.
    #[serde(
        borrow,
        alias = "sandbox_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub sandbox_id: Cow<'a, str>,
    /// Idle time in seconds after which the agent pauses it; 0 for never.
    #[serde(alias = "timeout_sec", deserialize_with = "int", skip_serializing_if = "is_zero")]
    pub timeout_sec: i32,
    /// User that commands run as.
    #[serde(
        borrow,
        alias = "default_user",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub default_user: Cow<'a, str>,
    /// Environment of commands.
    #[serde(
        alias = "default_env",
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub default_env: BTreeMap<String, String>,
    /// Kernel the snapshot was made with, from the sandbox's metadata.
    #[serde(
        borrow,
        alias = "kernel_version",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub kernel_version: Cow<'a, str>,
}

/// What was made or started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub struct CreateSandboxResponse<'a> {
    /// Its id.
    #[serde(
        borrow,
        alias = "sandbox_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub sandbox_id: Cow<'a, str>,
    /// `running`.
    #[serde(borrow, deserialize_with = "text", skip_serializing_if = "str::is_empty")]
    pub status: Cow<'a, str>,
    /// Address on the host's network.
    #[serde(
        borrow,
        alias = "host_ip",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub host_ip: Cow<'a, str>,
    /// Versions and the like.
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata<'a>,
}

/// Which sandbox to make a template of, and what the template is called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub struct CreateSnapshotRequest<'a> {
    /// Id of the running or paused sandbox.
    #[serde(
        borrow,
        alias = "sandbox_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub sandbox_id: Cow<'a, str>,
    /// Name of the template.
    #[serde(borrow, deserialize_with = "text", skip_serializing_if = "str::is_empty")]
    pub name: Cow<'a, str>,
    /// Team that owns the template, as a hyphenated UUID.
    #[serde(
        borrow,
        alias = "team_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub team_id: Cow<'a, str>,
    /// Template as a hyphenated UUID.
    #[serde(
        borrow,
        alias = "template_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub template_id: Cow<'a, str>,
}

/// Names a template: the one to remove, or whose size is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub struct TemplateRef<'a> {
    /// Team that owns the template, as a hyphenated UUID.
    #[serde(
        borrow,
        alias = "team_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub team_id: Cow<'a, str>,
    /// Template as a hyphenated UUID.
    #[serde(
        borrow,
        alias = "template_id",
        deserialize_with = "text",
        skip_serializing_if = "str::is_empty"
    )]
    pub template_id: Cow<'a, str>,
}

/// How large a template is. Answers `CreateSnapshot` and `GetTemplateSize`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
pub struct TemplateSize<'a> {
    /// Bytes on the host's disk.
    #[serde(
        alias = "size_bytes",
        deserialize_with = "int",
        serialize_with = "int64",
        skip_serializing_if = "is_zero"
    )]
    pub size_bytes: i64,
    #[serde(skip)]
    nothing: PhantomData<&'a ()>,
}

impl TemplateSize<'_> {
    /// Of so many bytes.
    pub fn of(size_bytes: i64) -> Self {
        TemplateSize { size_bytes, nothing: PhantomData }
    }
}

/// What an agent has. Only written here; `listing` reads it, straight into the model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListSandboxesResponse<'a> {
    /// Everything with a microVM; newer agents list paused sandboxes too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sandboxes: Vec<SandboxInfo<'a>>,
    /// What the agent paused by itself since it was last asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub auto_paused_sandbox_ids: Vec<Cow<'a, str>>,
}

/// One sandbox in a listing. Only written here, for simulated agents too; Roost has no use
/// for all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxInfo<'a> {
    /// Its id.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub sandbox_id: Cow<'a, str>,
    /// `paused`, or anything else for running.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub status: Cow<'a, str>,
    /// Name of the template; not read.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub template: Cow<'a, str>,
    /// Virtual processors; not read.
    #[serde(skip_serializing_if = "is_zero")]
    pub vcpus: i32,
    /// Memory in MiB; not read.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_mb: i32,
    /// Address on the host's network.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub host_ip: Cow<'a, str>,
    /// When its microVM was made by the agent's clock, unix seconds.
    #[serde(serialize_with = "int64", skip_serializing_if = "is_zero")]
    pub created_at_unix: i64,
    /// When it was last used, unix seconds; not read.
    #[serde(serialize_with = "int64", skip_serializing_if = "is_zero")]
    pub last_active_at_unix: i64,
    /// Idle time in seconds after which the agent pauses it; not read.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout_sec: i32,
    /// Team as a hyphenated UUID; not read.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub team_id: Cow<'a, str>,
    /// Template as a hyphenated UUID; not read.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub template_id: Cow<'a, str>,
    /// Versions and the like.
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata<'a>,
}

/// A message is a JSON object and nothing else. Serde's own reading would also take an
/// array of the fields in order, and so `[]` for an agent that has nothing.
macro_rules! object_only {
    (read $message:ty) => {
        impl<'de> serde::Deserialize<'de> for $message {
            fn deserialize<D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Self, D::Error> {
                struct ObjectOnly;
                impl<'de> serde::de::Visitor<'de> for ObjectOnly {
                    type Value = $message;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        map: A,
                    ) -> Result<Self::Value, A::Error> {
                        <$message>::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }
                deserializer.deserialize_map(ObjectOnly)
            }
        }
    };
    ($($message:ident),+ $(,)?) => {$(
        object_only!(read $message<'de>);

        impl Serialize for $message<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $message::serialize(self, serializer)
            }
        }
    )+};
}

pub(super) use object_only;

object_only!(
    ErrorBody,
    Empty,
    SandboxRef,
    CreateSandboxRequest,
    ResumeSandboxRequest,
    CreateSandboxResponse,
    CreateSnapshotRequest,
    TemplateRef,
    TemplateSize,
);

/// A JSON object of strings, kept as compact JSON text; the empty object is no text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata<'a>(Cow<'a, str>);

impl<'a> Metadata<'a> {
    /// Metadata from compact JSON text that was checked before, as the model keeps it.
    pub fn from_compact(json: &'a str) -> Metadata<'a> {
        Metadata(Cow::Borrowed(json))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text, as the model keeps it.
    pub fn into_compact(self) -> Option<Arc<str>> {
        if self.is_empty() { None } else { Some(self.0.into()) }
    }
}

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0)
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Metadata<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectOfStrings;
        impl<'de> Visitor<'de> for ObjectOfStrings {
            type Value = Metadata<'static>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Metadata::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Ok(Metadata(Cow::Owned(compact(map)?)))
            }
        }
        deserializer.deserialize_any(ObjectOfStrings)
    }
}

/// Writes an object of strings without spaces; nothing for an empty one.
fn compact<'de, A: MapAccess<'de>>(mut map: A) -> Result<String, A::Error> {
    let mut json = Vec::new();
    while let Some((key, value)) = map.next_entry::<Text<'de>, Text<'de>>()? {
        if json.is_empty() {
            json.reserve(METADATA_BYTES_USUAL);
            json.push(b'{');
        } else {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, &key.0).map_err(Error::custom)?;
        json.push(b':');
        serde_json::to_writer(&mut json, &value.0).map_err(Error::custom)?;
        if json.len() >= METADATA_BYTES_MAX {
            return Err(Error::custom(format_args!(
                "metadata is larger than {METADATA_BYTES_MAX} bytes"
            )));
        }
    }
    if !json.is_empty() {
        json.push(b'}');
    }
    String::from_utf8(json).map_err(Error::custom)
}

/// A string, borrowed from the answer unless it has escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyString;
        impl<'de> Visitor<'de> for AnyString {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(AnyString)
    }
}

pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, str>, D::Error> {
    Ok(Option::<Text<'de>>::deserialize(deserializer)?.map_or(Cow::Borrowed(""), |text| text.0))
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An integer as a number or as a string of decimal digits; `null` is 0.
pub(super) fn int<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    struct NumberOrString;
    impl Visitor<'_> for NumberOrString {
        type Value = i64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an integer, or one in a string")
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<i64, E> {
            Ok(value)
        }
        fn visit_u64<E: Error>(self, value: u64) -> Result<i64, E> {
            i64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
        }
        fn visit_str<E: Error>(self, digits: &str) -> Result<i64, E> {
            digits.parse().map_err(|_| E::invalid_value(Unexpected::Str(digits), &self))
        }
        fn visit_unit<E: Error>(self) -> Result<i64, E> {
            Ok(0)
        }
    }
    let value = deserializer.deserialize_any(NumberOrString)?;
    T::try_from(value).map_err(|_| Error::invalid_value(Unexpected::Signed(value), &"a 32-bit one"))
}

fn int64<S: Serializer>(value: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn is_zero<T: PartialEq + Default>(value: &T) -> bool {
    *value == T::default()
}
