//! Owns which tables and columns leave for PostgreSQL, and as what types.
//!
//! Never: forgets a column in silence: a test holds the lists against the schema.

/// How a column is written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An id or another word of ours, in the order of its bytes.
    Word,
    Text,
    Int,
    Bool,
    /// Milliseconds here.
    Time,
    /// Text here.
    Json,
    Hash,
}

impl Kind {
    /// The type there.
    pub(super) const fn sql(self) -> &'static str {
        match self {
            Kind::Word => "text COLLATE \"C\"",
            Kind::Text => "text",
            Kind::Int => "bigint",
            Kind::Bool => "boolean",
            Kind::Time => "timestamptz",
            Kind::Json => "jsonb",
            Kind::Hash => "bytea",
        }
    }
}

pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What follows the type: `NOT NULL`, checks.
    pub(super) rule: &'static str,
}

const fn must(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, rule: " NOT NULL" }
}

const fn may(name: &'static str, kind: Kind) -> Column {
    Column { name, kind, rule: "" }
}

const fn one_of(name: &'static str, rule: &'static str) -> Column {
    Column { name, kind: Kind::Word, rule }
}

pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [Column],
    /// What the table has besides, as SQL.
    pub(super) besides: &'static str,
    /// Primary key; rows are read in its order.
    pub(super) key: &'static str,
    /// Made after the rows are in, which is faster than before.
    pub(super) afterwards: &'static [&'static str],
}

/// The one table that only leaves when asked for.
pub(super) const EVENTS: &str = "events";

/// Everything that leaves. A table follows those that it refers to.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "state",
        columns: &[
            must("revision", Kind::Int),
            may("listened_until", Kind::Time),
            must("created_at", Kind::Time),
        ],
        besides: "",
        key: "revision",
        afterwards: &[],
    },
    Table {
        name: "hosts",
        columns: &[
            must("id", Kind::Word),
            must("team_id", Kind::Word),
            must("type", Kind::Text),
            may("provider", Kind::Text),
            may("availability_zone", Kind::Text),
            may("arch", Kind::Text),
            may("cpu_cores", Kind::Int),
            may("memory_mb", Kind::Int),
            may("disk_gb", Kind::Int),
            may("address", Kind::Text),
            one_of("intent", " NOT NULL CHECK (intent IN ('active', 'draining', 'offline'))"),
            one_of("liveness", " NOT NULL CHECK (liveness IN ('alive', 'unreachable'))"),
            may("registered_at", Kind::Time),
            must("rejoining", Kind::Bool),
            must("degraded", Kind::Bool),
            must("contact_gap", Kind::Bool),
            may("last_heartbeat_at", Kind::Time),
            may("probe_outcome", Kind::Word),
            may("probe_detail", Kind::Text),
            may("probe_at", Kind::Time),
            must("revision", Kind::Int),
            must("created_at", Kind::Time),
            must("updated_at", Kind::Time),
            must("registration", Kind::Int),
        ],
        // As the API shows it; model::host derives it in the same way.
        besides: ",\n    status text COLLATE \"C\" GENERATED ALWAYS AS (CASE \
                  WHEN registered_at IS NULL THEN 'pending' \
                  WHEN intent = 'offline' THEN 'offline' \
                  WHEN liveness = 'unreachable' THEN 'unreachable' \
                  WHEN intent = 'draining' THEN 'draining' ELSE 'online' END) STORED",
        key: "id",
        afterwards: &["CREATE INDEX hosts_by_team ON hosts (team_id)"],
    },
    Table {
        name: "tombstones",
        columns: &[must("host_id", Kind::Word), must("deleted_at", Kind::Time)],
        besides: "",
        key: "host_id",
        afterwards: &[],
    },
    Table {
        name: "sandboxes",
        columns: &[
            must("host_id", Kind::Word),
            must("id", Kind::Word),
            must("team_id", Kind::Word),
            one_of(
                "status",
                " NOT NULL CHECK (status IN ('pending', 'starting', 'running', 'pausing', \
                 'paused', 'resuming', 'stopping', 'stopped', 'missing', 'error', 'hibernated'))",
            ),
            may("status_reason", Kind::Text),
            must("status_changed_at", Kind::Time),
            must("revision", Kind::Int),
            may("template", Kind::Text),
            may("vcpus", Kind::Int),
            may("memory_mb", Kind::Int),
            may("timeout_sec", Kind::Int),
            may("disk_size_mb", Kind::Int),
            may("guest_ip", Kind::Text),
            may("host_ip", Kind::Text),
            may("metadata", Kind::Json),
            must("created_at", Kind::Time),
            may("started_at", Kind::Time),
            may("last_active_at", Kind::Time),
            may("status_detail", Kind::Text),
            may("template_id", Kind::Word),
            may("default_user", Kind::Text),
            may("default_env", Kind::Json),
        ],
        besides: "",
        key: "host_id, id",
        afterwards: &[
            "ALTER TABLE sandboxes ADD UNIQUE (id)",
            "ALTER TABLE sandboxes ADD FOREIGN KEY (host_id) REFERENCES hosts (id)",
            "CREATE INDEX sandboxes_by_team ON sandboxes (team_id)",
        ],
    },
    Table {
        name: "auto_pause_inbox",
        columns: &[
            must("host_id", Kind::Word),
            must("sandbox_id", Kind::Word),
            must("revision", Kind::Int),
            must("noted_at", Kind::Time),
        ],
        besides: "",
        key: "host_id, sandbox_id",
        afterwards: &[],
    },
    Table {
        name: "operations",
        columns: &[
            must("id", Kind::Word),
            must("sandbox_id", Kind::Word),
            must("host_id", Kind::Word),
            one_of(
                "kind",
                " NOT NULL CHECK (kind IN ('create', 'pause', 'resume', 'destroy', 'snapshot'))",
            ),
            must("created_at", Kind::Time),
            must("deadline_at", Kind::Time),
            may("sent_at", Kind::Time),
            may("settle_at", Kind::Time),
            may("finished_at", Kind::Time),
            may("error", Kind::Text),
            may("from_status", Kind::Word),
            may("template_id", Kind::Word),
            may("template_name", Kind::Text),
        ],
        besides: "",
        key: "id",
        afterwards: &["CREATE UNIQUE INDEX operations_unfinished \
                       ON operations (host_id, sandbox_id) WHERE finished_at IS NULL"],
    },
    Table {
        name: "templates",
        columns: &[
            must("id", Kind::Word),
            must("team_id", Kind::Word),
            must("name", Kind::Text),
            one_of("type", " NOT NULL CHECK (type IN ('base', 'snapshot'))"),
            may("vcpus", Kind::Int),
            may("memory_mb", Kind::Int),
            may("disk_size_mb", Kind::Int),
            may("size_bytes", Kind::Int),
            may("default_user", Kind::Text),
            may("default_env", Kind::Json),
            may("metadata", Kind::Json),
            must("created_at", Kind::Time),
            may("deleted_at", Kind::Time),
        ],
        besides: "",
        key: "id",
        afterwards: &["CREATE UNIQUE INDEX templates_by_name \
                       ON templates (team_id, name) WHERE deleted_at IS NULL"],
    },
    Table {
        name: "template_hosts",
        columns: &[must("template_id", Kind::Word), must("host_id", Kind::Word)],
        besides: "",
        key: "template_id, host_id",
        afterwards: &[
            "ALTER TABLE template_hosts ADD FOREIGN KEY (template_id) REFERENCES templates (id)",
            "ALTER TABLE template_hosts ADD FOREIGN KEY (host_id) REFERENCES hosts (id)",
        ],
    },
    Table {
        name: "strangers",
        columns: &[
            must("host_id", Kind::Word),
            must("sandbox_id", Kind::Word),
            one_of("kind", " NOT NULL CHECK (kind IN ('zombie', 'forgotten', 'misplaced'))"),
            must("seen_at", Kind::Time),
        ],
        besides: "",
        key: "host_id, sandbox_id",
        afterwards: &["ALTER TABLE strangers ADD FOREIGN KEY (host_id) REFERENCES hosts (id)"],
    },
    Table {
        name: "registration_tokens",
        columns: &[
            must("hash", Kind::Hash),
            must("id", Kind::Word),
            must("host_id", Kind::Word),
            must("created_at", Kind::Time),
            must("expires_at", Kind::Time),
        ],
        besides: "",
        key: "hash",
        afterwards: &[
            "ALTER TABLE registration_tokens ADD FOREIGN KEY (host_id) REFERENCES hosts (id)",
        ],
    },
    Table {
        name: "refresh_tokens",
        columns: &[
            must("hash", Kind::Hash),
            must("id", Kind::Word),
            must("host_id", Kind::Word),
            may("parent", Kind::Hash),
            must("created_at", Kind::Time),
            must("expires_at", Kind::Time),
        ],
        besides: "",
        key: "hash",
        afterwards: &[
            "ALTER TABLE refresh_tokens ADD FOREIGN KEY (host_id) REFERENCES hosts (id)",
            "CREATE INDEX refresh_tokens_by_host ON refresh_tokens (host_id)",
        ],
    },
    Table {
        name: "api_keys",
        columns: &[
            must("id", Kind::Word),
            Column {
                name: "hash",
                kind: Kind::Hash,
                rule: " NOT NULL UNIQUE CHECK (octet_length(hash) = 32)",
            },
            must("team_id", Kind::Word),
            must("name", Kind::Text),
            must("suffix", Kind::Text),
            must("created_at", Kind::Time),
            may("last_used_at", Kind::Time),
        ],
        besides: "",
        key: "id",
        afterwards: &[],
    },
    Table {
        name: "audit_logs",
        columns: &[
            must("seq", Kind::Int),
            must("id", Kind::Word),
            must("team_id", Kind::Word),
            one_of("actor_type", " NOT NULL CHECK (actor_type IN ('user', 'api_key', 'system'))"),
            may("actor_id", Kind::Text),
            may("actor_name", Kind::Text),
            must("resource_type", Kind::Word),
            must("resource_id", Kind::Text),
            must("action", Kind::Word),
            must("scope", Kind::Word),
            one_of("status", " NOT NULL CHECK (status IN ('success', 'info', 'warning', 'error'))"),
            must("metadata", Kind::Json),
            must("created_at", Kind::Time),
        ],
        besides: "",
        key: "seq",
        afterwards: &[
            "CREATE INDEX audit_logs_by_team ON audit_logs (team_id, seq)",
            "CREATE INDEX audit_logs_by_resource ON audit_logs (resource_id, seq)",
        ],
    },
    Table {
        name: EVENTS,
        columns: &[
            must("revision", Kind::Int),
            must("at", Kind::Time),
            must("kind", Kind::Word),
            must("host_id", Kind::Word),
            may("sandbox_id", Kind::Word),
            must("team_id", Kind::Word),
            may("from_status", Kind::Word),
            may("to_status", Kind::Word),
            must("reason", Kind::Text),
            must("actor", Kind::Word),
            may("detail", Kind::Text),
        ],
        besides: "",
        key: "revision",
        afterwards: &[],
    },
];

/// Tables and columns that stay here: what only a running Roost needs.
#[cfg(test)]
pub(super) const STAYS: &[&str] = &[
    "state.id",
    "state.serving",
    "state.boot_id",
    "event_shares.author",
    "event_shares.given_up",
    "event_shares.up_to",
    "restores.revision",
    "restores.last_known",
    "restores.as_of",
    "restores.restored_at",
    "restores.accepted_at",
    "notify_state.id",
    "notify_state.cursor",
    "notify_problems.kind",
    "notify_problems.host_id",
    "notify_problems.opened_at",
    "notify_problems.sandboxes",
    "notify_problems.announced",
    "notify_problems.told_at",
    "notify_problems.gone_at",
    "notify_problems.unwatched",
    "notify_messages.seq",
    "notify_messages.at",
    "notify_messages.phase",
    "notify_messages.body",
    "notify_outbox.target",
    "notify_outbox.seq",
    "host_maintenance.host_id",
    "host_maintenance.until",
    "host_maintenance.reason",
    "sandboxes.ended",
    "host_usage",
    "team_usage",
    "unknown_hosts.host_id",
    "unknown_hosts.genuine",
    "unknown_hosts.first_seen_at",
    "unknown_hosts.last_seen_at",
    "idempotency_keys.scope",
    "idempotency_keys.key",
    "idempotency_keys.body_hash",
    "idempotency_keys.sandbox_id",
    "idempotency_keys.created_at",
];
