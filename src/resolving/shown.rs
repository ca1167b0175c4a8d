//! The real arguments of what is to be done by hand, for who has claimed it: as the tiers that held the call show them. Where nobody
//! had to approve it no tier hides anything.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use super::{away, entry};
use crate::{
    app::{App, Setting},
    call::{ByClass, ClassRule, ClassRules},
    entry::{Entry, Kind},
    ids::CallId,
    parked::Sealed,
    reason::Refusal,
    redaction::{Marks, View},
    secrets::Keyring,
    store::{self, work::WorkRow},
    visible,
};

/// What was sealed of a call, as one operator sees it.
#[derive(Debug)]
pub struct Opened {
    /// The arguments, with nothing hidden in them.
    pub arguments: Value,
    /// What the call will touch, as those saw it who approved it.
    pub preview: Option<Value>,
    /// The classes of sensitive values among them that are seen in clear.
    pub seen: BTreeSet<String>,
}

/// Opens what was sealed of a call that waited in `tiers`, by the marks of its arguments and of what was read for its preview. None where no secret of the config opens it.
pub(super) fn opened(
    (setting, keyring): (Setting<'_>, &Keyring),
    (marks, of_preview): (&Marks, Option<&Marks>),
    operator: &str,
    (call, sealed): (&str, &[u8]),
    tiers: &[String],
) -> Option<Opened> {
    let plain = keyring.open(call, sealed).ok()?;
    let sealed: Sealed = serde_json::from_slice(&plain).ok()?;
    let mut arguments = Value::Object(sealed.arguments);
    let mut view = View::new(rules_for(setting, operator, tiers));
    view.apply(marks, &mut arguments);
    visible::document(&mut arguments);
    let preview = sealed.preview.map(|preview| {
        let mut shown = preview.shown(of_preview, &mut view);
        visible::document(&mut shown);
        shown
    });
    Some(Opened {
        arguments,
        preview,
        seen: view.passed,
    })
}

/// A class is seen in clear where every tier shows it to its people, or where one does in which the operator could take a seat. A
/// tier that the config no longer has shows nothing.
fn rules_for(setting: Setting<'_>, operator: &str, tiers: &[String]) -> ClassRules {
    let config = setting.config;
    let person = config.operators.get(operator);
    let has_seat = |tier: &str| {
        let tier = config.tiers.get(tier);
        tier.into_iter()
            .flat_map(|tier| &tier.requires)
            .any(|requirement| person.is_some_and(|person| person.is(&requirement.member)))
    };
    let shows = |tier: &str, class: &str| {
        let tier = config.tiers.get(tier);
        tier.is_some_and(|tier| tier.shows.iter().any(|shown| shown == class))
    };
    let mut rules = ByClass::default();
    for class in ByClass::CLASSES {
        let by_all = tiers.iter().all(|tier| shows(tier, class));
        let by_seat = tiers
            .iter()
            .any(|tier| has_seat(tier) && shows(tier, class));
        if !by_all && !by_seat {
            rules.set(class, ClassRule::Mask);
        }
    }
    ClassRules {
        marked: rules,
        detected: rules,
    }
}

/// The real arguments of an item, for whoever has claimed it. Nothing is shown without a record of who saw it. `None` where they
/// are not kept: those of a call whose answer was lost are gone.
///
/// # Errors
/// When the seeing cannot be recorded.
pub async fn real_arguments(
    app: &App,
    call: &CallId,
    row: &WorkRow,
    operator: &Arc<str>,
) -> Result<Option<Opened>, Refusal> {
    let has_it = row.state == "claimed" && row.claimed_by.as_deref() == Some(&**operator);
    if !has_it || row.kind != "manual" {
        return Ok(None);
    }
    let read = async {
        let mut connection = app.pool.acquire().await?;
        let kept = store::calls::find(&mut connection, call.as_str()).await?;
        let tiers = store::work::tiers_of(&mut connection, call.as_str()).await?;
        Ok::<_, store::StoreError>((kept.and_then(|kept| kept.sealed), tiers))
    };
    let (sealed, tiers) = read.await.map_err(|error| away(&error))?;
    let tool = row.tool.as_deref().and_then(|tool| app.tools.get(tool));
    // Without its contract nobody can say what in it is sensitive.
    let (Some(sealed), Some(tool)) = (sealed, tool) else {
        return Ok(None);
    };
    let reading = tool.contract.preview.as_ref();
    let reading = reading.and_then(|preview| app.tools.get(&preview.reading.tool));
    let of_preview = reading.map(|tool| &tool.output_marks);
    let opened = opened(
        (app.setting(), &app.keyring),
        (&tool.marks, of_preview),
        operator,
        (call.as_str(), &sealed),
        &tiers,
    );
    let Some(opened) = opened else {
        return Ok(None);
    };
    let seen = Entry {
        detail: Some(json!({ "arguments": true, "seen": opened.seen })),
        ..entry(row, call, operator, Kind::WorkViewed)
    };
    app.recorder
        .commit(seen)
        .await
        .map_err(|_unrecorded| Refusal::record_unavailable())?;
    Ok(Some(opened))
}
