//! Owns the paths of the original API that Roost does not have: each is answered 501, with
//! what to use instead.
//!
//! Never: answers 404, which clients take for an answer about a file, a process or a
//! capsule.

use super::Problem;
use crate::http::Request;
use crate::model::id::SandboxId;

/// Paths, each with everything below it, and what to use instead. `{…}` stands for one part.
const MISSING: &[(&str, &str)] = &[
    ("v1/capsules/{id}/exec", INSIDE),
    ("v1/capsules/{id}/processes", INSIDE),
    ("v1/capsules/{id}/files", INSIDE),
    ("v1/capsules/{id}/pty", INSIDE),
    ("v1/capsules/{id}/ports", PORTS),
    ("v1/capsules/{id}/metrics", "CPU and memory of a capsule: ask the host's agent"),
    ("v1/capsules/stats", "use GET /v1/history or GET /metrics"),
    ("v1/capsules/usage", "use GET /v1/audit for who used what when"),
    ("v1/events/stream", "use GET /v1/events"),
    ("v1/audit-logs", "use GET /v1/audit"),
    ("v1/hosts/{id}/tags", "hosts have type, provider and availability_zone instead"),
    ("v1/auth", ACCOUNTS),
    ("v1/me", ACCOUNTS),
    ("v1/users", ACCOUNTS),
    ("v1/teams", ACCOUNTS),
    ("auth/oauth", ACCOUNTS),
    ("v1/channels", "notifications are set up in roost.toml; see GET /v1/notifications"),
    ("v1/volumes", "capsules have one disk each; its size is disk_size_mb of POST /v1/capsules"),
    ("v1/admin", "use the same path without /admin, with the admin key"),
    ("health", "use GET /healthz"),
    ("openapi.yaml", "it is docs/openapi.yaml of Roost"),
    ("docs", "they are in docs/ of Roost"),
];

const INSIDE: &str = "it does not run commands in capsules or read their files; the host's agent \
     does (Exec, ReadFile and others of hostagent.v1.HostAgentService)";
const PORTS: &str = "it does not forward ports of capsules; the host's agent does, under \
     /proxy/{capsule}/{port}/";
const ACCOUNTS: &str = "it has no accounts; make an API key for a team: POST /v1/api-keys";

/// The refusal of a request for a port of a capsule by its Host header,
/// `{port}-{capsule}.{domain}`; `None` for every other host.
pub(super) fn by_host(request: &Request) -> Option<Problem> {
    let (name, _domain) = request.headers.get("host")?.split_once('.')?;
    let (port, capsule) = name.split_once('-')?;
    let is_port = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_capsule = capsule.to_ascii_lowercase().parse::<SandboxId>().is_ok();
    (is_port && is_capsule).then(|| refusal(PORTS))
}

/// The refusal of a path that the original API has and Roost does not.
pub(super) fn by_path(path: &[&str]) -> Option<Problem> {
    MISSING.iter().find(|(pattern, _)| begins(pattern, path)).map(|(_, instead)| refusal(instead))
}

/// Whether a path is this pattern or lies below it.
fn begins(pattern: &str, path: &[&str]) -> bool {
    let mut path = path.iter();
    pattern
        .split('/')
        .all(|part| path.next().is_some_and(|found| part.starts_with('{') || part == *found))
}

fn refusal(instead: &str) -> Problem {
    Problem::new(501, "not_implemented", format!("this is not part of Roost: {instead}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes::routes;

    #[test]
    fn no_route_is_missing() {
        for (method, path) in routes() {
            let parts: Vec<&str> = path.split('/').collect();
            assert_eq!(by_path(&parts), None, "{method} {path} is both there and missing");
        }
    }

    #[test]
    fn what_lies_below_is_missing_too_and_nothing_beside() {
        let missing = |path: &str| by_path(&path.split('/').collect::<Vec<_>>()).is_some();
        for path in ["v1/capsules/x/files", "v1/capsules/x/files/stream/write", "v1/me", "docs"] {
            assert!(missing(path), "{path}");
        }
        for path in ["v1/capsules", "v1/capsules/x", "v1/capsules/x/file", "v1", "v1/mean", ""] {
            assert!(!missing(path), "{path}");
        }
    }
}
