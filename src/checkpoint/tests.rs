//! The tree against the recursive definition of RFC 6962, keys and notes against the examples of their specifications, and
//! everything that can be done to a note against its reader.

use proptest::prelude::*;

use super::{tree::sha256, *};

/// MTH of RFC 6962, section 2.1, word for word.
fn definition(entries: &[Hash]) -> Hash {
    match entries {
        [] => sha256(&[]),
        [one] => sha256(&[&[0], one]),
        more => {
            let split = more.len().next_power_of_two() / 2;
            sha256(&[
                &[1],
                &definition(&more[..split]),
                &definition(&more[split..]),
            ])
        }
    }
}

fn entries(count: usize) -> Vec<Hash> {
    (0..count)
        .map(|number| sha256(&[&number.to_be_bytes()]))
        .collect()
}

#[test]
fn the_tree_is_that_of_rfc_6962_at_every_size() {
    let entries = entries(300);
    let mut tree = Frontier::default();
    assert_eq!(tree.root(), definition(&[]));
    for (number, entry) in entries.iter().enumerate() {
        tree.push(entry);
        assert_eq!(tree.root(), definition(&entries[..=number]), "{number}");
    }
    assert_eq!(tree.size(), 300);
}

#[test]
fn a_tree_in_stretches_has_the_same_root_everywhere() {
    let entries = entries(77);
    let mut left = Frontier::default();
    for (number, stretch) in entries.chunks(16).enumerate() {
        let mut part = Frontier::default();
        for (offset, entry) in stretch.iter().enumerate() {
            part.push(entry);
            let size = number * 16 + offset + 1;
            assert_eq!(left.root_with(part.tail()), definition(&entries[..size]));
        }
        if stretch.len() == 16 {
            left.push_subtree(part.root(), 4);
        }
    }
}

fn key(name: &str) -> SigningKey {
    SigningKey::generate(name).unwrap()
}

/// The example of golang.org/x/mod/sumdb/note, whose form this is.
#[test]
fn somebody_elses_note_is_read() {
    let key: VerifierKey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        .parse()
        .unwrap();
    let note = "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n\n\
                — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    let parsed = Note::parse(note.as_bytes()).unwrap();
    assert_eq!(parsed.signers([&key].into_iter()).unwrap(), [&key]);
    assert_eq!(key.to_string().parse(), Ok(key.clone()));
    let changed = note.replace("answer", "Answer");
    let parsed = Note::parse(changed.as_bytes()).unwrap();
    assert_eq!(parsed.signers([&key].into_iter()), Err(Refused::Forged));
}

#[test]
fn keys_come_back_from_their_texts_and_from_no_others() {
    let one = key("example.com/log");
    let text = one.to_text();
    let again = SigningKey::parse(text.expose()).unwrap();
    assert_eq!(again.verifier(), one.verifier());
    assert!(!format!("{one:?}").contains(text.expose().rsplit('+').next().unwrap()));
    let public = one.verifier().to_string();
    assert_eq!(
        public.replace("example", "Example").parse::<VerifierKey>(),
        Err(KeyError::Id)
    );
    for wrong in ["", "a", "a+b", "a+00000000+", "a b+00000000+AAAA"] {
        assert!(wrong.parse::<VerifierKey>().is_err(), "{wrong:?}");
    }
    for name in ["", "a b", "a+b", "a\nb", "a\u{2003}b"] {
        assert_eq!(SigningKey::generate(name).unwrap_err(), KeyError::Name);
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        origin: Checkpoint::origin_of("example.com/log", "inst_1"),
        size: 20_852_163,
        root: sha256(&[b"root"]),
    }
}

fn read(note: &[u8], key: &VerifierKey) -> Result<Checkpoint, Refused> {
    let note = Note::parse(note)?;
    note.signers([key].into_iter())?;
    Checkpoint::parse(note.text())
}

#[test]
fn no_bit_of_a_checkpoint_can_be_another() {
    let signer = key("example.com/log");
    let note = checkpoint().signed(&signer).into_bytes();
    assert_eq!(read(&note, signer.verifier()), Ok(checkpoint()));
    for bit in 0..note.len() * 8 {
        let mut changed = note.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let said = read(&changed, signer.verifier());
        assert!(said.is_err(), "bit {bit}: {said:?}");
        // Nor as one of many in a file.
        let all: Vec<_> = notes(changed.as_slice())
            .map(|split| read(&split.unwrap().bytes, signer.verifier()))
            .collect();
        assert!(all.iter().all(Result::is_err), "bit {bit}: {all:?}");
    }
}

#[test]
fn signatures_of_others_count_for_nothing_and_doubled_ones_are_refused() {
    let (signer, other) = (key("example.com/log"), key("example.com/log"));
    let text = checkpoint().text();
    let (own, foreign) = (signer.signature_line(&text), other.signature_line(&text));
    let ask = |lines: &str| read(format!("{text}\n{lines}").as_bytes(), signer.verifier());
    assert_eq!(ask(&format!("{foreign}{own}")), Ok(checkpoint()));
    assert_eq!(ask(&foreign), Err(Refused::UnknownKey));
    assert!(matches!(
        ask(&format!("{own}{own}")),
        Err(Refused::Malformed(_))
    ));
    assert!(matches!(ask(""), Err(Refused::Malformed(_))));
    assert!(matches!(ask("\n"), Err(Refused::Malformed(_))));
    let many: String = (0..33)
        .map(|number| key(&format!("w{number}")).signature_line(&text))
        .collect();
    assert!(matches!(ask(&many), Err(Refused::Malformed(_))));
}

#[test]
fn only_one_text_is_a_checkpoint() {
    let text = checkpoint().text();
    for wrong in [
        text.replace("20852163", "020852163"),
        text.replace("20852163", "+20852163"),
        text.replace("20852163", ""),
        text.replace("20852163", "18446744073709551616"),
        text.replace("example.com/log/inst_1", ""),
        format!("{text}extension\n"),
        format!("{text}\n"),
        text.trim_end().to_owned(),
        text.replace('=', ""),
    ] {
        assert!(Checkpoint::parse(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_handover_needs_both_keys() {
    let (old, new, third) = (key("a"), key("a"), key("a"));
    let handover = Handover::sign(&old, &new);
    assert_eq!(Handover::parse(handover.note()), Ok(handover.clone()));
    let stripped = |without: &SigningKey| -> String {
        let line = without.signature_line(Note::parse(handover.note().as_bytes()).unwrap().text());
        assert!(handover.note().contains(&line));
        handover.note().replace(&line, "")
    };
    assert!(Handover::parse(&stripped(&old)).is_err());
    assert!(Handover::parse(&stripped(&new)).is_err());
    let other = handover
        .note()
        .replace(&new.verifier().to_string(), &third.verifier().to_string());
    assert!(Handover::parse(&other).is_err());
    assert!(Handover::parse(&checkpoint().signed(&old)).is_err());
}

proptest! {
    /// Whatever a file holds, reading it ends, and good notes among the rest are found.
    #[test]
    fn a_file_is_taken_apart(junk in "(\n|— |[a-z0-9 ]|[^a]){0,80}", count in 1_u64..4) {
        let signer = key("k");
        let good: String = (1..=count)
            .map(|size| Checkpoint { size, ..checkpoint() }.signed(&signer))
            .collect();
        let sizes = |file: String| -> Vec<u64> {
            notes(file.as_bytes())
                .filter_map(|split| read(&split.unwrap().bytes, signer.verifier()).ok())
                .map(|found| found.size)
                .collect()
        };
        prop_assert_eq!(sizes(good.clone()), (1..=count).collect::<Vec<_>>());
        prop_assert_eq!(sizes(format!("\n{good}\n\n{good}")).len() as u64, 2 * count);
        sizes(junk.clone());
        // What stands behind the last signature takes nothing away from what stands before it.
        let left = sizes(format!("{good}{junk}")).len() as u64;
        prop_assert!(left >= count - 1, "{} of {}", left, count);
    }
}

#[test]
fn a_line_without_end_is_read_in_bounded_memory() {
    let signer = key("k");
    let file = format!(
        "{}\n\n{}",
        "x".repeat(3 * MAX_NOTE_BYTES),
        checkpoint().signed(&signer)
    );
    let read: Vec<_> = notes(file.as_bytes())
        .map(|split| {
            let split = split.unwrap();
            assert!(split.bytes.len() <= MAX_NOTE_BYTES + 1);
            (split.line, read(&split.bytes, signer.verifier()).is_ok())
        })
        .collect();
    assert!(!read[0].1, "{read:?}");
}
