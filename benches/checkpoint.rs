//! What checkpoints cost: nanoseconds for each entry that the Merkle tree grows by, beside the entry's own hash over 600 bytes,
//! and for each checkpoint the root of a large tree and the signature.
//!
//! `cargo bench --bench checkpoint` prints medians of seven rounds.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{hint::black_box, time::Instant};

use aws_lc_rs::digest;
use toolgate::checkpoint::{Checkpoint, Frontier, SigningKey};

const ROUNDS: usize = 7;

fn measure(name: &str, count: u32, mut work: impl FnMut(u32)) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            (0..count).for_each(&mut work);
            began.elapsed().as_secs_f64() * 1e9 / f64::from(count)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let median = rounds.get(ROUNDS / 2).copied().unwrap_or_default();
    println!("{name:<48} {median:>9.0} ns");
}

fn main() -> anyhow::Result<()> {
    let entry = [7; 600];
    measure("SHA-256 of an entry of 600 bytes", 200_000, |_| {
        black_box(digest::digest(&digest::SHA256, black_box(&entry)));
    });
    let mut tree = Frontier::default();
    measure("the tree, one more entry", 1_000_000, |number| {
        let mut hash = [0; 32];
        if let Some(start) = hash.first_chunk_mut() {
            *start = number.to_be_bytes();
        }
        tree.push(&hash);
    });
    measure(
        &format!("the root at {} entries", tree.size()),
        50_000,
        |_| {
            black_box(tree.root());
        },
    );
    let key = SigningKey::generate("toolgate.example.com/bench")?;
    let checkpoint = Checkpoint {
        origin: Checkpoint::origin_of(key.verifier().name(), "inst_01M836DMDRE8JA51EV49058M8N"),
        size: tree.size(),
        root: tree.root(),
    };
    measure("signing a checkpoint", 5_000, |_| {
        black_box(checkpoint.signed(&key));
    });
    Ok(())
}
