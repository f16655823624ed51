//! Owns `roost demo`: the control plane at work with simulated hosts that fail now and
//! then, told line by line, and a summary that is checked.
//!
//! Never: touches a data directory that somebody uses; leaves anything behind. Called by
//! `cli`.

mod fault;
mod play;
mod show;
mod stage;
mod summary;

use super::args::Demo;
use super::output::{Exit, Failure, Screen};
use super::unreadable;
use crate::api::secret;
use crate::config::Inputs;
use crate::store::{journal::Random, verify};
use play::Play;
use show::{Interrupts, Show};
use stage::Stage;

/// Seeds that nobody chose are below this: short enough to type again.
const SEED_DRAWN_MAX: u64 = 1_000_000;

/// Runs the demo until its time is over or somebody interrupts it.
///
/// # Errors
/// When it cannot be set up, or when the summary is not as it should be.
pub(super) fn run(inputs: &Inputs, options: &Demo) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::watch()?;
    let stage = Stage::build(inputs, options)?;
    let result = perform(&stage, options, &mut interrupts);
    stage.close();
    result
}

fn perform(stage: &Stage, options: &Demo, interrupts: &mut Interrupts) -> Result<Exit, Failure> {
    let seed = options.seed.unwrap_or_else(drawn_seed);
    let mut show = Show::new();
    show.say("roost", &format!("listening on {}", stage.url()))?;
    let key = secret::read(&stage.paths().admin_key).map_err(unreadable)?;
    show.say("page", &format!("open {}/ and sign in with {key}", stage.url()))?;
    show.say("look", &format!("roost --data-dir {} status", stage.dir().display()))?;
    show.say("seed", &format!("{seed}; --seed {seed} repeats these faults"))?;
    let mut play = Play::begin(stage, options, seed, &mut show, interrupts)?;
    play.run(options.run_for, &mut show, interrupts)?;
    let disagreements = play.settle(&mut show, interrupts)?;
    let broken = verify::verify(play.conn()).map_err(unreadable)?;
    let records = play.records();
    show.text(&summary::table(&records, Screen::of_stdout()))?;
    let missing = summary::missing(&records, &disagreements, &broken);
    if !missing.is_empty() {
        return Err(Failure::new("could not bring everything in order").because(missing.join("; ")));
    }
    show.say("summary", &summary::verdict(&records, play.sandboxes()))?;
    Ok(Exit::Done)
}

fn drawn_seed() -> u64 {
    u64::from_be_bytes(Random::new().bytes()) % SEED_DRAWN_MAX
}
