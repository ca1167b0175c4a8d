//! When a delivery is tried again: the pauses of its destination, lengthened by chance, so that receivers that were away are not
//! met by everything at once.

use std::time::Duration;

use crate::secrets::random_bytes;

/// A pause is lengthened by up to a fifth.
const JITTER: f64 = 0.2;

/// The pause after so many failed tries, at least as long as the receiver asked for; nothing after the last.
pub(super) fn next(
    retries: &[Duration],
    failed_tries: usize,
    asked: Option<Duration>,
) -> Option<Duration> {
    let pause = *retries.get(failed_tries.checked_sub(1)?)?;
    // Without random bytes there is still a pause.
    let [chance] = random_bytes::<1>().unwrap_or_default();
    let pause = pause.mul_f64(1.0 + JITTER * f64::from(chance) / 255.0);
    Some(pause.max(asked.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_follow_the_schedule_and_end_with_it() {
        let seconds = Duration::from_secs;
        let retries = [seconds(5), seconds(300)];
        for _ in 0..100 {
            let first = next(&retries, 1, None).unwrap();
            assert!((seconds(5)..=seconds(6)).contains(&first), "{first:?}");
            let second = next(&retries, 2, None).unwrap();
            assert!((seconds(300)..=seconds(360)).contains(&second));
        }
        assert_eq!(next(&retries, 3, None), None);
        assert_eq!(next(&retries, 1, Some(seconds(90))), Some(seconds(90)));
    }
}
