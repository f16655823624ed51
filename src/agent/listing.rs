//! Owns the one place where a listing crosses the edge: from an answer's bytes to the
//! model's [`Listing`], and back for simulated agents.
//!
//! Never: I/O; accepts an answer in part. An answer that is not wholly what the protocol
//! says is no observation, but the auto-paused ids in it are saved: the agent forgets
//! them once it has told us. Called by `client` and `sim`.

use super::wire::{
    ConnectCode, ErrorBody, ListSandboxesResponse, Metadata, SandboxInfo, int, object_only, text,
};
use crate::model::id::SandboxId;
use crate::model::probe::{Details, Listed, ListedState, Listing};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Most sandboxes in one listing. Larger: a hostile agent makes one plan hold the writer
/// for seconds. Smaller: a real machine with many small microVMs could not be watched.
pub const SANDBOXES_MAX: usize = 16_384;

/// Most auto-paused ids taken from one answer. Larger: a hostile agent fills the inbox.
/// Smaller: an agent that nobody asked for long could not tell all it paused.
pub const AUTO_PAUSED_MAX: usize = 65_536;

/// Longest `hostIp` in bytes. Larger: agents fill our database. Smaller: a name in place
/// of an address (at most 253 bytes) would not fit.
pub const HOST_IP_BYTES_MAX: usize = 256;

/// The statuses that say something else than running.
const PAUSED: &str = "paused";
const ERROR: &str = "error";

/// Why an answer is no listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What was wrong, as the parser says it: may be long and hold what the agent wrote.
    pub detail: String,
    /// Auto-paused ids that could be read all the same, each once.
    pub drained: Vec<SandboxId>,
}

/// Reads the body of a successful `ListSandboxes` answer.
///
/// # Errors
/// When the body is not UTF-8, not one JSON object, has a wrong type in a field that is
/// used, an id that is no sandbox id, an id twice among `sandboxes`, or more than the
/// limits above.
pub fn read(body: &[u8]) -> Result<Listing, Unreadable> {
    strict(body).map_err(|detail| Unreadable { detail, drained: drained(body) })
}

fn strict(body: &[u8]) -> Result<Listing, String> {
    let json = std::str::from_utf8(body).map_err(|e| format!("not UTF-8: {e}"))?;
    let Reading { sandboxes, auto_paused_sandbox_ids } =
        serde_json::from_str(json).map_err(|e| format!("not a listing: {e}"))?;
    if let Some(twice) = first_repeated(&sandboxes) {
        return Err(format!("not a listing: {twice} is listed twice"));
    }
    let listing = Listing { sandboxes, auto_paused: auto_paused_sandbox_ids };
    if listing == Listing::default() && is_error(json) {
        return Err("a Connect error with status 200".to_owned());
    }
    Ok(listing)
}

/// Unknown fields are ignored, and so an error that came with status 200 would read as an
/// agent that has nothing.
fn is_error(json: &str) -> bool {
    serde_json::from_str::<ErrorBody<'_>>(json)
        .is_ok_and(|error| error.code.parse::<ConnectCode>().is_ok())
}

fn first_repeated(sandboxes: &[Listed]) -> Option<SandboxId> {
    let mut ids: Vec<SandboxId> = sandboxes.iter().map(|listed| listed.id).collect();
    ids.sort_unstable();
    ids.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// `ListSandboxesResponse` as it is read: entries become the model's as they come, so that
/// a listing is never in memory twice.
#[derive(Default, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
struct Reading {
    #[serde(deserialize_with = "sandboxes")]
    sandboxes: Vec<Listed>,
    #[serde(alias = "auto_paused_sandbox_ids", deserialize_with = "auto_paused")]
    auto_paused_sandbox_ids: Vec<SandboxId>,
}

object_only!(read Reading);

fn sandboxes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Listed>, D::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<Listed>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of sandboxes")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let (mut entries, mut known) = (Vec::new(), Known::default());
            while let Some(entry) = seq.next_element::<Entry<'de>>()? {
                if entries.len() == SANDBOXES_MAX {
                    return Err(A::Error::custom(format_args!("over {SANDBOXES_MAX} sandboxes")));
                }
                entries.push(listed(entry, &mut known).map_err(A::Error::custom)?);
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_seq(Entries)
}

/// What is read of [`SandboxInfo`].
#[derive(Default, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
struct Entry<'a> {
    #[serde(borrow, alias = "sandbox_id", deserialize_with = "text")]
    sandbox_id: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "text")]
    status: Cow<'a, str>,
    #[serde(borrow, alias = "host_ip", deserialize_with = "text")]
    host_ip: Cow<'a, str>,
    #[serde(alias = "created_at_unix", deserialize_with = "int")]
    created_at_unix: i64,
    /// As it was written.
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

object_only!(read Entry<'de>);

/// The metadata that was read last. The sandboxes of one host mostly say the same, and so
/// it is read, and kept in memory, once.
#[derive(Default)]
struct Known<'a> {
    written: &'a str,
    read: Option<Arc<str>>,
}

impl<'a> Known<'a> {
    fn metadata(&mut self, raw: Option<&'a RawValue>) -> Result<Option<Arc<str>>, String> {
        let Some(written) = raw.map(RawValue::get) else { return Ok(None) };
        if written != self.written {
            let read: Metadata<'_> = serde_json::from_str(written).map_err(|e| {
                let (what, at) =
                    (e.to_string(), format!(" at line {} column {}", e.line(), e.column()));
                format!("metadata: {}", what.trim_end_matches(&at))
            })?;
            (self.written, self.read) = (written, read.into_compact());
        }
        Ok(self.read.clone())
    }
}

/// One entry of the wire as one of the model.
fn listed<'a>(entry: Entry<'a>, known: &mut Known<'a>) -> Result<Listed, String> {
    let Entry { sandbox_id, status, host_ip, created_at_unix, metadata } = entry;
    Ok(Listed {
        id: sandbox(&sandbox_id)?,
        state: match &*status {
            PAUSED => ListedState::Paused,
            ERROR => ListedState::Error,
            _ => ListedState::Running,
        },
        created_at_unix,
        details: Details { host_ip: address(&host_ip)?, metadata: known.metadata(metadata)? },
    })
}

fn sandbox(id: &str) -> Result<SandboxId, String> {
    id.parse().map_err(|e| format!("sandbox {id:?}: {e}"))
}

/// What an agent says of a sandbox beyond its id, as the model keeps it.
pub(super) fn details(host_ip: &str, metadata: Metadata<'_>) -> Result<Details, String> {
    Ok(Details { host_ip: address(host_ip)?, metadata: metadata.into_compact() })
}

fn address(host_ip: &str) -> Result<Option<Box<str>>, String> {
    match host_ip.len() {
        0 => Ok(None),
        1..=HOST_IP_BYTES_MAX => Ok(Some(host_ip.into())),
        bytes => Err(format!("a hostIp of {bytes} bytes")),
    }
}

fn auto_paused<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SandboxId>, D::Error> {
    struct Ids;
    impl<'de> Visitor<'de> for Ids {
        type Value = Vec<SandboxId>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of sandbox ids")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut ids = Once::default();
            while let Some(id) = seq.next_element::<SandboxId>()? {
                if !ids.take(id) {
                    return Err(A::Error::custom(format_args!("over {AUTO_PAUSED_MAX} ids")));
                }
            }
            Ok(ids.ids)
        }
    }
    deserializer.deserialize_seq(Ids)
}

/// Ids in their order, each once: an agent that was restored may repeat itself.
#[derive(Default)]
struct Once {
    ids: Vec<SandboxId>,
    seen: HashSet<SandboxId>,
}

impl Once {
    /// False when there is no more room.
    fn take(&mut self, id: SandboxId) -> bool {
        if self.seen.insert(id) {
            if self.ids.len() == AUTO_PAUSED_MAX {
                return false;
            }
            self.ids.push(id);
        }
        true
    }
}

/// The valid auto-paused ids of any JSON object, whatever else is wrong with it; none when
/// the body is no JSON at all.
pub(super) fn drained(body: &[u8]) -> Vec<SandboxId> {
    // Bytes that are no UTF-8 spoil only the texts they stand in.
    let json = String::from_utf8_lossy(body);
    serde_json::from_str::<Leftovers>(&json).map_or_else(|_| Vec::new(), |left| left.0.ids)
}

struct Leftovers(Once);

impl<'de> Deserialize<'de> for Leftovers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyObject;
        impl<'de> Visitor<'de> for AnyObject {
            type Value = Leftovers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Leftovers, A::Error> {
                let mut found = Once::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    if key == "autoPausedSandboxIds" || key == "auto_paused_sandbox_ids" {
                        let list = map.next_value::<&RawValue>()?;
                        // Anything but a list holds no ids.
                        let _ = collect(list, &mut found);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Leftovers(found))
            }
        }
        deserializer.deserialize_map(AnyObject)
    }
}

fn collect(list: &RawValue, into: &mut Once) -> Result<(), serde_json::Error> {
    struct AnyList<'a>(&'a mut Once);
    impl<'de> Visitor<'de> for AnyList<'_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            while let Some(element) = seq.next_element::<&RawValue>()? {
                if let Ok(id) = serde_json::from_str(element.get()) {
                    self.0.take(id);
                }
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_str(list.get()).deserialize_seq(AnyList(into))
}

impl<'a> From<&'a Listing> for ListSandboxesResponse<'a> {
    /// A listing as a simulated agent writes it; what the model does not hold is left out.
    fn from(listing: &'a Listing) -> Self {
        let id = |id: &SandboxId| Cow::Owned(id.to_string());
        ListSandboxesResponse {
            sandboxes: listing.sandboxes.iter().map(info).collect(),
            auto_paused_sandbox_ids: listing.auto_paused.iter().map(id).collect(),
        }
    }
}

fn info(listed: &Listed) -> SandboxInfo<'_> {
    let Listed { id, state, created_at_unix, details: Details { host_ip, metadata } } = listed;
    SandboxInfo {
        sandbox_id: Cow::Owned(id.to_string()),
        status: Cow::Borrowed(match state {
            ListedState::Running => "running",
            ListedState::Paused => PAUSED,
            ListedState::Error => ERROR,
        }),
        host_ip: Cow::Borrowed(host_ip.as_deref().unwrap_or_default()),
        created_at_unix: *created_at_unix,
        metadata: Metadata::from_compact(metadata.as_deref().unwrap_or_default()),
        ..SandboxInfo::default()
    }
}

/// The body of a listing in bytes, as an agent sends it.
///
/// # Errors
/// When a listing's metadata is not JSON, which [`read`] never makes.
pub fn write(listing: &Listing) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&ListSandboxesResponse::from(listing))
}
