//! Owns what is shipped for Prometheus and Grafana: rules that are right, alarms that fire
//! for what they are there for, and names that exist.
//!
//! Never: judges a threshold.

use crate::{file, promtool, read};
use roost::api::metrics::families::{ALL, Family, Type};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const RULES: &str = "contrib/prometheus/alerts.yml";
const RULE_TESTS: &str = "contrib/prometheus/alerts.test.yml";
const DASHBOARD: &str = "contrib/grafana/roost.json";
const RUNBOOK: &str = "docs/operate.md";

#[test]
fn prometheus_takes_the_rules_and_each_fires_for_its_cause_only() {
    promtool(&["check", "rules", file(RULES).to_str().unwrap()], "");
    promtool(&["test", "rules", file(RULE_TESTS).to_str().unwrap()], "");
    let tested = read(RULE_TESTS);
    for alert in alerts() {
        let (name, names) = (&alert["alert"], |line: &str| {
            line.contains(&format!("alertname: {}", alert["alert"]))
        });
        let twice = tested.lines().filter(|line| names(line.trim_end_matches(','))).count();
        assert!(twice >= 2, "{name}: one test in which it fires, one in which it does not");
    }
}

/// What the rules say of each alert, by the words that YAML has for it.
fn alerts() -> Vec<BTreeMap<String, String>> {
    let mut alerts: Vec<BTreeMap<String, String>> = Vec::new();
    for line in read(RULES).lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((key, value)) = line.trim_start_matches([' ', '-']).split_once(':') else {
            continue;
        };
        if key == "alert" {
            alerts.push(BTreeMap::new());
        }
        if let Some(alert) = alerts.last_mut() {
            alert.insert(key.to_owned(), value.trim().to_owned());
        }
    }
    assert!(alerts.len() > 10, "{alerts:?}");
    alerts
}

/// Anchors of the headings, as they are made on the web.
pub(crate) fn anchors(markdown: &str) -> BTreeSet<String> {
    let headings = markdown.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_alert_says_what_it_is_and_where_to_read_on() {
    let runbook = read(RUNBOOK);
    let anchors = anchors(&runbook);
    for alert in alerts() {
        let name = &alert["alert"];
        assert!(alert["summary"].trim_matches('"').ends_with('.'), "{name} has a summary");
        assert!(["page", "ticket"].contains(&alert["severity"].as_str()), "{name}");
        let anchor = alert["runbook"].strip_prefix("docs/operate.md#").unwrap();
        assert!(anchors.contains(anchor), "{name}: no section {anchor} in {anchors:?}");
        assert!(runbook.contains(&format!("`{name}`")), "the section does not name {name}");
        check_names(&alert["expr"]);
    }
    assert_eq!(anchor_of_a_heading(), "host-down-or-gone");
}

fn anchor_of_a_heading() -> String {
    anchors("## Host down, or gone\n").pop_first().unwrap()
}

#[test]
fn the_dashboard_shows_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut expressions = Vec::new();
    collect(&dashboard, &mut expressions);
    assert!(expressions.len() > 30, "{expressions:?}");
    expressions.iter().for_each(|expression| check_names(expression));
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "every panel has an id of its own");
}

/// Everything that Prometheus is asked.
fn collect<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Array(all) => all.iter().for_each(|value| collect(value, into)),
        Value::Object(all) => {
            for (key, value) in all {
                match (key.as_str(), value) {
                    ("expr" | "query", Value::String(text)) if text != "prometheus" => {
                        into.push(text)
                    }
                    (_, value) => collect(value, into),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// An expression asks for metrics that exist, by labels and values that they have.
fn check_names(expression: &str) {
    let names = names(expression);
    assert!(!names.is_empty(), "nothing is asked by {expression}");
    for (name, selector) in names {
        if name == "up" {
            continue;
        }
        let family = ALL.iter().find(|family| sample_names(family).contains(&name));
        let family = family.unwrap_or_else(|| panic!("no metric {name} for {expression}"));
        for (label, word) in selector {
            let known = family.labels.iter().find(|known| known.name == label);
            match known {
                Some(known) => word.split('|').for_each(|word| {
                    assert!(known.words.contains(&word), "{name} has no {label} {word}");
                }),
                None => assert!(["instance", "job", "le"].contains(&label.as_str()), "{label}"),
            }
        }
    }
}

fn sample_names(family: &Family) -> Vec<String> {
    match family.kind {
        Type::Histogram => {
            ["_bucket", "_sum", "_count"].map(|part| format!("{}{part}", family.name)).into()
        }
        Type::Counter | Type::Gauge => vec![family.name.to_owned()],
    }
}

type Selector = Vec<(String, String)>;

/// Names of metrics in an expression, each with what it is selected by.
fn names(expression: &str) -> Vec<(String, Selector)> {
    let mut found = Vec::new();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for (at, _) in expression.match_indices(|c: char| c.is_ascii_alphabetic()) {
        if expression[..at].ends_with(is_word) {
            continue;
        }
        let rest = &expression[at..];
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        if !["roost_", "process_"].iter().any(|p| name.starts_with(p)) && name != "up" {
            continue;
        }
        let selector = rest[name.len()..].strip_prefix('{').and_then(|s| s.split_once('}'));
        let selector = selector.map_or("", |(selector, _)| selector);
        let pairs = selector.split(',').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(label, word)| {
            (label.trim_end_matches('!').to_owned(), word.trim_matches(['~', '"']).to_owned())
        });
        found.push((name, pairs.collect()));
    }
    found
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    for wrong in [
        "roost_no_such_thing > 0",
        "rate(roost_probe_duration_seconds[5m])",
        "roost_hosts{status=\"asleep\"}",
        "roost_hosts{kind=\"online\"}",
        "1 + 1",
    ] {
        assert!(std::panic::catch_unwind(|| check_names(wrong)).is_err(), "{wrong}");
    }
    check_names(
        "sum(roost_heartbeats_total{answer=~\"401|403\",job=\"roost\"}) / up{job=\"roost\"}",
    );
}
