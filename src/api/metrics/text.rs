//! Owns Prometheus' text format, version 0.0.4.
//!
//! Never: writes a sample of a metric that is not in the table.

use super::families::{ALL, Family};
use crate::figures::{BOUNDS_MS, Histogram};
use std::collections::HashMap;
use std::fmt::{Display, Write as _};
use std::time::Duration;

/// One scrape: samples by metric.
#[derive(Debug, Default)]
pub(super) struct Scrape(HashMap<&'static str, String>);

impl Scrape {
    /// A sample of a metric without labels.
    pub(super) fn one(&mut self, family: &Family, value: impl Display) {
        self.sample(family, &[], value);
    }

    /// A sample for each word of a metric with one label.
    pub(super) fn each<V: Display>(
        &mut self,
        family: &Family,
        values: impl IntoIterator<Item = V>,
    ) {
        let words = family.labels.first().map_or(&[][..], |label| label.words);
        for (word, value) in words.iter().zip(values) {
            self.sample(family, &[word], value);
        }
    }

    /// A sample with a word for each label of its metric.
    pub(super) fn sample(&mut self, family: &Family, words: &[&str], value: impl Display) {
        self.line(family, "", &labels(family, words, None), value);
    }

    /// The samples of a histogram.
    pub(super) fn histogram(&mut self, family: &Family, figures: &Histogram) {
        let (counts, sum) = figures.get();
        let ends = BOUNDS_MS.iter().map(|bound| seconds(Duration::from_millis(*bound)));
        let ends = ends.map(|end| end.to_string()).chain(["+Inf".to_owned()]);
        for (end, count) in ends.zip(counts) {
            self.line(family, "_bucket", &labels(family, &[], Some(&end)), count);
        }
        self.line(family, "_sum", "", seconds(sum));
        self.line(family, "_count", "", counts.last().copied().unwrap_or_default());
    }

    fn line(&mut self, family: &Family, suffix: &str, labels: &str, value: impl Display) {
        let Some(family) = ALL.iter().find(|known| known.name == family.name) else { return };
        let lines = self.0.entry(family.name).or_default();
        let _ = writeln!(lines, "{}{suffix}{labels} {value}", family.name);
    }

    /// The whole text: every metric with its meaning, also when nothing is known of it now.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for Family { name, kind, help, .. } in ALL {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str());
            out.push_str(self.0.get(name).map_or("", String::as_str));
        }
        out
    }
}

/// In the unit of the format.
pub(super) fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

/// Values are words of our own vocabularies and versions: nothing to escape.
fn labels(family: &Family, words: &[&str], end: Option<&str>) -> String {
    let named = family.labels.iter().map(|label| label.name).zip(words.iter().copied());
    let all: Vec<String> = named
        .chain(end.map(|end| ("le", end)))
        .map(|(name, word)| format!("{name}=\"{word}\""))
        .collect();
    match all.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", all.join(",")),
    }
}
