//! Prints how many decisions the embedded evaluator makes in a second, and how long a policy takes to load.
//!
//! Every `wal push` loads the policy and asks it once: both have to be small beside a process that starts.
//! The bar is a decision in less than a millisecond.

use std::hint::black_box;
use std::time::{Duration, Instant};

use lifeboat_core::policy::Facts;
use lifeboat_engine::policy::{Policy, PolicySettings};

/// Long enough to be steady, short enough to be run.
const DURATION: Duration = Duration::from_secs(2);

/// The first example of the schema: a restore into production, with two approvals.
const SCHEMA: &str = include_str!("../../../docs/policy-facts.schema.json");

fn rate(what: &str, mut work: impl FnMut()) {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < DURATION {
        work();
        count += 1;
    }
    println!("{what}: {:.0}/s", f64::from(count) / start.elapsed().as_secs_f64());
}

fn main() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let facts: Facts = serde_json::from_value(schema["examples"][0].clone()).expect("its example is facts");
    let policy = Policy::open(&PolicySettings::default());
    let decided = policy.decide(&facts);
    assert!(decided.decision.allow, "{decided:?}");
    rate("policy decisions", || drop(black_box(policy.decide(black_box(&facts)))));
    rate("policy loads", || drop(black_box(Policy::open(&PolicySettings::default()))));
}
