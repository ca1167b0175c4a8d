//! The counts as Prometheus reads them: text format 0.0.4. Every label value is a word of this program or a name of the config.

use std::{fmt, sync::Arc, sync::atomic::Ordering};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, prometheus_text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{Histogram, Metrics, People, Step, UpstreamError};
use crate::{entry::Outcome, reason::Reason};

pub use prometheus_text::CONTENT_TYPE;

/// A value of the moment in which it is asked for, which somebody else knows.
#[derive(Debug)]
pub struct Gauge {
    /// Without the prefix `toolgate_`.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// One value for each set of labels.
    pub values: Vec<(Labels, f64)>,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Scrape {
    metrics: Arc<Metrics>,
    people: Arc<People>,
    gauges: Vec<Gauge>,
}

/// All of it as text.
///
/// # Errors
/// Never: a text takes whatever is written to it.
pub fn exposition(
    metrics: &Arc<Metrics>,
    people: &Arc<People>,
    gauges: Vec<Gauge>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("toolgate");
    registry.register_collector(Box::new(Scrape {
        metrics: Arc::clone(metrics),
        people: Arc::clone(people),
        gauges,
    }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.calls(&mut encoder)?;
        self.records(&mut encoder)?;
        self.people(&mut encoder)?;
        for gauge in &self.gauges {
            let mut metric =
                encoder.encode_descriptor(gauge.name, gauge.help, None, MetricType::Gauge)?;
            for (labels, value) in &gauge.values {
                let labels: Vec<(&str, &str)> = labels
                    .iter()
                    .map(|(name, value)| (*name, value.as_str()))
                    .collect();
                metric.encode_family(&labels)?.encode_gauge(value)?;
            }
        }
        Ok(())
    }
}

impl Scrape {
    fn calls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.metrics;
        let mut calls = encoder.encode_descriptor(
            "calls",
            "Calls of agents by decision and, where denied, reason",
            None,
            MetricType::Counter,
        )?;
        let denied = Reason::ALL
            .iter()
            .enumerate()
            .map(|(at, reason)| ("deny", reason.code(), metrics.denied.get(at)));
        let all = [
            ("permit", "", metrics.permitted.get(0)),
            ("park", "", metrics.parked.get(0)),
        ];
        for (decision, reason, count) in all.into_iter().chain(denied) {
            calls
                .encode_family(&[("decision", decision), ("reason", reason)])?
                .encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        let outcomes =
            Outcome::ALL.map(|outcome| (outcome.as_str(), metrics.outcomes.get(outcome as usize)));
        counters(
            encoder,
            "outcomes",
            "What became of calls",
            "outcome",
            &outcomes,
        )?;
        let errors = UpstreamError::ALL
            .map(|error| (error.as_str(), metrics.upstream_errors.get(error as usize)));
        counters(
            encoder,
            "upstream_errors",
            "Tries without an answer from the API",
            "error",
            &errors,
        )?;
        let mut steps = encoder.encode_descriptor(
            "step",
            "Time that a call spent in each step of the pipeline",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (step, histogram) in Step::ALL.iter().zip(&metrics.steps) {
            let labels = [("step", step.as_str())];
            histogram.encode(steps.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn records(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.metrics;
        metrics.batch_entries.encode(encoder.encode_descriptor(
            "commit_entries",
            "Audit entries in one commit",
            None,
            MetricType::Histogram,
        )?)?;
        metrics.commit.encode(encoder.encode_descriptor(
            "commit",
            "Time that a commit of audit entries took",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?)?;
        let mut connections = encoder.encode_descriptor(
            "open_connections",
            "Connections that are open",
            None,
            MetricType::Gauge,
        )?;
        for (listener, count) in ["agents", "operators"].iter().zip(&metrics.connections) {
            connections
                .encode_family(&[("listener", *listener)])?
                .encode_gauge(&count.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn people(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut used = encoder.encode_descriptor(
            "permissions_used",
            "Calls that a standing permission approved",
            None,
            MetricType::Counter,
        )?;
        used.encode_counter::<NoLabelSet, _, f64>(&self.metrics.permissions_used.get(0), None)?;
        let mut decisions = encoder.encode_descriptor(
            "approval_decision",
            "Time from the parking of a call to its decision by people; a line of identical calls counts once",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (tier, histogram) in &self.people.decisions {
            let labels = [("tier", &**tier)];
            histogram.encode(decisions.encode_family(&labels)?)?;
        }
        for (name, help, is_hasty) in [
            (
                "approval_votes",
                "Votes on parked calls; a line of identical calls counts once",
                false,
            ),
            (
                "approval_votes_under_five_seconds",
                "Those votes that came less than five seconds after the parking",
                true,
            ),
        ] {
            let mut votes = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (operator, voter) in &self.people.voters {
                let counters = if is_hasty { &voter.hasty } else { &voter.votes };
                for (which, vote) in ["approve", "deny"].into_iter().enumerate() {
                    votes
                        .encode_family(&[("operator", &**operator), ("vote", vote)])?
                        .encode_counter::<NoLabelSet, _, f64>(&counters.get(which), None)?;
                }
            }
        }
        Ok(())
    }
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    counts: &[(&str, u64)],
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in counts {
        metric
            .encode_family(&[(label, *value)])?
            .encode_counter::<NoLabelSet, _, f64>(count, None)?;
    }
    Ok(())
}

impl Histogram {
    #[expect(
        clippy::cast_precision_loss,
        reason = "bounds are small, and a sum beyond 2^53 need not be exact"
    )]
    fn encode(&self, mut encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        let bounds = self
            .bounds
            .iter()
            .map(|bound| *bound as f64 * self.scale)
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds
            .zip(self.buckets.iter())
            .map(|(bound, count)| (bound, count.load(Ordering::Relaxed)))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Ordering::Relaxed) as f64 * self.scale;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_bucket_that_ends_with_it() {
        let histogram = Histogram::new(&[10, 20], 0.1);
        for value in [0, 10, 11, 20, 21, u64::MAX >> 1] {
            histogram.observe(value);
        }
        let counts: Vec<u64> = histogram
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        assert_eq!(counts, [2, 2, 2]);
    }

    #[test]
    fn every_label_is_there_from_the_start_and_every_line_can_be_read() {
        let metrics = Arc::new(Metrics::default());
        let people = Arc::new(People::new(
            ["finance".into()].into_iter(),
            ["ada".into()].into_iter(),
        ));
        people.voted("ada", true, std::time::Duration::from_secs(1));
        people.voted("ada", true, std::time::Duration::from_secs(5));
        people.voted("nobody", true, std::time::Duration::ZERO);
        people.decided("finance", std::time::Duration::from_secs(5));
        let gauges = vec![Gauge {
            name: "build_info",
            help: "The build",
            values: vec![(vec![("version", "1".to_owned())], 1.0)],
        }];
        let text = exposition(&metrics, &people, gauges).unwrap();
        for line in [
            "toolgate_calls_total{decision=\"permit\",reason=\"\"} 0",
            "toolgate_calls_total{decision=\"deny\",reason=\"halted\"} 0",
            "toolgate_outcomes_total{outcome=\"indeterminate\"} 0",
            "toolgate_step_seconds_bucket{step=\"forward\",le=\"+Inf\"} 0",
            "toolgate_approval_votes_total{operator=\"ada\",vote=\"approve\"} 2",
            "toolgate_approval_votes_under_five_seconds_total{operator=\"ada\",vote=\"approve\"} 1",
            "toolgate_approval_decision_seconds_bucket{tier=\"finance\",le=\"1\"} 0",
            "toolgate_approval_decision_seconds_bucket{tier=\"finance\",le=\"5\"} 1",
            "toolgate_build_info{version=\"1\"} 1.0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        assert!(!text.contains("nobody"));
        for line in text.lines() {
            assert!(
                line.starts_with("# HELP toolgate_")
                    || line.starts_with("# TYPE toolgate_")
                    || line
                        .rsplit_once(' ')
                        .is_some_and(|(_, value)| value.parse::<f64>().is_ok()),
                "{line}"
            );
        }
    }
}
