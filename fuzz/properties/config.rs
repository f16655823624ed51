//! Owns the property of `roost.toml`: any text is read or refused; what is accepted is
//! shown, and what is shown is accepted and means the same.
//!
//! Never: the environment.

use roost::config::{Config, Inputs};
use serde_json::Value;
use std::io::{Seek, Write};
use tempfile::NamedTempFile;

/// Fails when the property does not hold for these bytes.
pub fn holds(bytes: &[u8]) {
    let Some(config) = load(bytes) else { return };
    let shown = config.to_json();
    let settings = shown["settings"].as_object().expect("an object");
    let text: String = settings.iter().map(|(key, row)| line(key, &row["value"])).collect();
    let again = load(text.as_bytes()).expect("what is shown is accepted");
    assert!(config.changed(&again).is_empty(), "{text}");
    let (one, two) = (config.policy(), again.policy());
    assert_eq!((one, config.listen), (two, again.listen));
    assert_eq!((config.workers, config.probe_timeout), (again.workers, again.probe_timeout));
    assert_eq!((&config.data_dir, &config.log), (&again.data_dir, &again.log));
    let _ = (config.to_text(), config.warnings());
}

/// As one would write it.
fn line(key: &str, value: &Value) -> String {
    let mut quoted = String::new();
    for c in value.as_str().expect("text").chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\U{:08x}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    format!("{key} = \"{quoted}\"\n")
}

fn load(text: &[u8]) -> Option<Config> {
    thread_local! {
        static FILE: NamedTempFile = NamedTempFile::new().expect("made");
    }
    FILE.with(|file| {
        let mut handle = file.as_file();
        handle.set_len(0).expect("emptied");
        handle.rewind().expect("at the start");
        handle.write_all(text).expect("written");
        let inputs = Inputs { config_file: Some(file.path().to_owned()), ..Inputs::default() };
        match Config::load(&inputs) {
            Ok(config) => Some(config),
            Err(refused) => {
                assert!(!refused.to_string().is_empty());
                None
            }
        }
    })
}
