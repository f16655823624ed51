//! Owns who asks, and what that opens: the admin key everything, any other key what its
//! team owns.
//!
//! Never: reads or writes the database; a key costs a look into a table in memory.

use super::{Problem, Ready, secret};
use crate::http::Request;
use crate::model::event::ActorType;
use crate::model::id::{PLATFORM_TEAM, TeamId};
use crate::store::journal::Actor;
use crate::store::keys::{ApiKey, Keys};

/// Whoever showed a valid key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
    /// The holder of the admin key: an operator.
    Admin,
    /// The holder of a key that an operator made.
    Key(Box<ApiKey>),
}

/// Whoever holds the admin key, as history names them.
pub(super) fn operator() -> Actor {
    Actor { kind: ActorType::ApiKey, id: None, name: Some("admin".to_owned()) }
}

impl Caller {
    /// Who sent a request; 401 when its key is missing or not valid.
    pub(super) fn of(ready: &Ready, request: &Request) -> Result<Caller, Problem> {
        let Some(shown) = request.headers.get("x-api-key") else {
            return Err(Problem::unauthorized(
                "an API key is needed: send X-API-Key; the first one is in admin.key in the data directory",
            ));
        };
        let hash = secret::hash(shown);
        if ready.admin.is(&hash) {
            return Ok(Caller::Admin);
        }
        let key = ready.keys.show(hash, ready.now().wall);
        let key = key.ok_or_else(|| Problem::unauthorized("the API key is not valid"))?;
        Ok(Caller::Key(Box::new(key)))
    }

    /// Lets the operator through; 403 for everybody else.
    pub(super) fn must_be_admin(&self) -> Result<(), Problem> {
        match self {
            Caller::Admin => Ok(()),
            Caller::Key(_) => Err(Problem::forbidden("this needs the admin key")),
        }
    }

    /// Whose things are seen; `None`: everybody's.
    pub(super) fn team(&self) -> Option<TeamId> {
        match self {
            Caller::Admin => None,
            Caller::Key(key) => Some(key.team),
        }
    }

    /// Whether something of this team is there at all, for whoever asks.
    pub(super) fn sees(&self, team: TeamId) -> bool {
        self.team().is_none_or(|own| own == team)
    }

    /// Whose a new thing is: a key's own team's; an operator may name any.
    pub(super) fn owner(&self, wanted: Option<TeamId>) -> Result<TeamId, Problem> {
        match (self, wanted) {
            (Caller::Admin, wanted) => Ok(wanted.unwrap_or(PLATFORM_TEAM)),
            (Caller::Key(key), None) => Ok(key.team),
            (Caller::Key(key), Some(wanted)) if wanted == key.team => Ok(wanted),
            (Caller::Key(_), Some(_)) => {
                Err(Problem::forbidden("team_id: this key acts for its own team only"))
            }
        }
    }

    /// As history names them.
    pub(super) fn actor(&self) -> Actor {
        match self {
            Caller::Admin => operator(),
            Caller::Key(key) => Actor {
                kind: ActorType::ApiKey,
                id: Some(key.id.to_string()),
                name: Some(key.name.clone()),
            },
        }
    }

    /// Whether the key counts still: for answers that take their time.
    pub(super) fn still_counts(&self, keys: &Keys) -> bool {
        match self {
            Caller::Admin => true,
            Caller::Key(key) => keys.counts(key.id),
        }
    }
}
