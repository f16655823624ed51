//! Owns the words of `agents.json`: what happens when, and what each agent answers.
//!
//! Never: lets anything happen (`world` does). Words that are not known are refused, so
//! that a case cannot mean something else than it says.

use roost::model::host::Host;
use roost::model::id::HostId;
use roost::model::policy::{Policy, PolicyName};
use roost::model::probe::FailureKind;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How long a healthy agent takes to answer.
const ANSWERS_AFTER_MS: u64 = 20;

/// One `agents.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Script {
    /// What the case shows, in one sentence.
    pub(crate) shows: String,
    #[serde(default)]
    policy: Option<String>,
    /// Probe workers, when the case is about too few of them.
    #[serde(default)]
    pub(crate) workers: Option<usize>,
    /// How long the case lasts.
    for_s: f64,
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
}

impl Script {
    pub(crate) fn read(text: &str) -> Result<Script, String> {
        let script: Script = serde_json::from_str(text).map_err(|e| e.to_string())?;
        script.policy()?;
        if !script.shows.ends_with('.') || script.shows.contains('\n') {
            return Err("\"shows\" must be one sentence that ends with a full stop".to_owned());
        }
        if !script.steps.is_sorted_by_key(|step| step.at_ms) {
            return Err("the steps must be in order of time".to_owned());
        }
        if script.steps.last().is_some_and(|step| step.at_ms >= script.for_ms()) {
            return Err("\"for_s\" ends before the last step".to_owned());
        }
        Ok(script)
    }

    pub(crate) fn policy(&self) -> Result<Policy, String> {
        let name = self.policy.as_deref().unwrap_or(PolicyName::Default.as_str());
        match name.parse().map_err(|e| format!("policy: {e}"))? {
            PolicyName::Default => Ok(Policy::default()),
            PolicyName::Strict => Ok(Policy::strict()),
        }
    }

    pub(crate) fn for_ms(&self) -> u64 {
        milliseconds(self.for_s)
    }
}

/// Something that happens at one moment.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub(crate) struct Step {
    pub(crate) at_ms: u64,
    pub(crate) what: What,
}

impl TryFrom<Map<String, Value>> for Step {
    type Error = String;

    fn try_from(mut fields: Map<String, Value>) -> Result<Step, String> {
        let at = fields.remove("at_s").and_then(|at| at.as_f64()).ok_or("a step needs \"at_s\"")?;
        let what = serde_json::from_value(Value::Object(fields));
        let what = what.map_err(|e| format!("the step at {at} s: {e}"))?;
        Ok(Step { at_ms: milliseconds(at), what })
    }
}

fn milliseconds(seconds: f64) -> u64 {
    // Cases are written by hand: `as` saturates, and milliseconds are exact enough.
    (seconds * 1000.0).round() as u64
}

/// Everything that a case can let happen.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// From now on these agents answer so: one answer for each question, the last for ever.
    Agents(BTreeMap<HostId, Vec<Answer>>),
    /// These hosts beat every 30 s from now on.
    Beats(Hosts),
    /// These hosts beat no more.
    Silent(Hosts),
    /// This host beats once, now.
    Beat(HostId),
    /// This host beats once, between the next verdict on it and the writing of it.
    BeatDuringVerdict(HostId),
    /// An operator asks for a probe of this host.
    Probe(HostId),
    /// The control plane is killed, and started again after so many seconds.
    RestartAfterS(f64),
    /// The control plane's machine sleeps for so many seconds.
    SuspendS(f64),
    /// Somebody sets the clock on the wall by so many seconds.
    WallClockS(i64),
}

/// Some hosts, or `"all"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Hosts {
    Listed(Vec<HostId>),
    Word(Everybody),
}

/// The word `"all"`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Everybody {
    All,
}

impl Hosts {
    /// The hosts that are meant, among those of the fleet.
    pub(crate) fn among(&self, fleet: &[Host]) -> Vec<HostId> {
        match self {
            Hosts::Listed(hosts) => hosts.clone(),
            Hosts::Word(Everybody::All) => fleet.iter().map(|host| host.id).collect(),
        }
    }
}

/// What an agent does when it is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "AnswerText")]
pub(crate) struct Answer {
    pub(crate) says: Says,
    pub(crate) after_ms: u64,
}

/// What comes back.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// A `ListSandboxesResponse`, in the wire's own JSON.
    Lists(Value),
    /// A body that is sent as it is.
    Body(String),
    /// No body at all.
    Fails(FailureKind),
}

impl Answer {
    /// An answer that a healthy agent takes its usual time for.
    pub(crate) fn listing(body: Value) -> Answer {
        Answer { says: Says::Lists(body), after_ms: ANSWERS_AFTER_MS }
    }

    /// The same answer from an agent that has told its announcements: it forgets them.
    pub(crate) fn told(mut self) -> Answer {
        if let Says::Lists(Value::Object(body)) = &mut self.says {
            body.remove("autoPausedSandboxIds");
        }
        self
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerText {
    lists: Option<Value>,
    body: Option<String>,
    fails: Option<String>,
    after_ms: Option<u64>,
}

impl TryFrom<AnswerText> for Answer {
    type Error = String;

    fn try_from(text: AnswerText) -> Result<Answer, String> {
        let (says, usual_ms) = match (text.lists, text.body, text.fails) {
            (Some(body), None, None) => (Says::Lists(body), ANSWERS_AFTER_MS),
            (None, Some(body), None) => (Says::Body(body), ANSWERS_AFTER_MS),
            (None, None, Some(word)) => fault(&word)?,
            _ => return Err("an answer needs one of \"lists\", \"body\", \"fails\"".to_owned()),
        };
        Ok(Answer { says, after_ms: text.after_ms.unwrap_or(usual_ms) })
    }
}

/// A fault by its word, and after how long it usually shows.
fn fault(word: &str) -> Result<(Says, u64), String> {
    let kind: FailureKind = word.parse().map_err(|e| format!("fails: {e}"))?;
    let after_ms = match kind {
        FailureKind::Unreachable => 1,
        FailureKind::Refused => ANSWERS_AFTER_MS,
        // The deadline of the whole probe.
        FailureKind::TimedOut => 8_000,
        FailureKind::Malformed | FailureKind::WrongHost => {
            return Err(format!("{word} is for Roost to find out from \"body\" or \"lists\""));
        }
    };
    Ok((Says::Fails(kind), after_ms))
}
