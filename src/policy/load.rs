//! Loads policy files: everything that is wrong with them is found in one go, and only a set without
//! errors becomes [`Policies`].

use std::collections::{BTreeMap, HashMap};

use cedar_policy::{Authorizer, Effect, EntityUid, Schema};
use serde_json::{Value, json};

use super::draft::{self, Draft};
use super::operators::OperatorAction;
use super::schema::{API_GROUP, CONSEQUENCE_GROUP, GeneratedSchema};
use super::slices::Slices;
use super::world::{self, GATEWAY, Types, World};
use super::{Acting, Callable, Party, Policies, rules, validation};
use crate::diagnostics::{Finding, SourceFile};
use crate::json;

/// Loads the policies of these files for this world. The policies are there exactly when no finding is an
/// error; findings come in the order of the files and of the places in them.
pub fn load(files: &[SourceFile], world: &World<'_>) -> (Option<Policies>, Vec<Finding>) {
    let mut findings = Vec::new();
    let nowhere = SourceFile::new("policies", "");
    let first = files.first().unwrap_or(&nowhere);
    let at_start = |message: String| Finding::error(first, 0..0, message);

    let generated = GeneratedSchema::of(world);
    findings.extend(generated.problems.iter().cloned().map(at_start));
    let schema = Schema::from_json_value(generated.json.clone())
        .map_err(|error| {
            findings.push(at_start(format!(
                "no Cedar schema can be made of the contracts: {error}"
            )))
        })
        .ok();

    let mut drafts = Vec::new();
    for file in files {
        drafts.extend(draft::read(file, &mut findings));
    }
    let unreadable = has_errors(&findings);
    rules::identify(&mut drafts, &mut findings);
    let names = world.names();
    for draft in &drafts {
        rules::check(draft, &names, &mut findings);
    }
    let mut loaded = None;
    if let Some(schema) = schema {
        validation::validate(&drafts, &schema, &generated, world, &mut findings);
        // A permit that is wrong was reported; that nothing is permitted without it is no news.
        let excused = unreadable || (drafts.iter().any(is_permit) && has_errors(&findings));
        if !excused && !drafts.iter().any(|draft| permits_calls(draft, &schema)) {
            let message = "no policy permits any call, so that the gateway refuses to start";
            let help = "everything is denied by default: write a `permit` for what agents may do";
            findings.push(at_start(message.to_owned()).with_help(help));
        }
        if !has_errors(&findings) {
            loaded = build(&drafts, world, generated, &schema)
                .map_err(|error| {
                    findings.push(at_start(format!(
                        "the policies cannot be put to use: {error:#}"
                    )))
                })
                .ok();
        }
    }
    let order: HashMap<String, usize> = files
        .iter()
        .zip(0..)
        .map(|(file, number)| (file.path.display().to_string(), number))
        .collect();
    findings.sort_by_key(|finding| {
        let (path, line, column) = finding.place();
        (
            order.get(&path).copied(),
            line,
            column,
            finding.message.clone(),
        )
    });
    (loaded, findings)
}

fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| !finding.note)
}

fn is_permit(draft: &Draft<'_>) -> bool {
    draft.policy.effect() == Effect::Permit
}

/// Whether this is a permit that some agent's call could match.
fn permits_calls(draft: &Draft<'_>, schema: &Schema) -> bool {
    is_permit(draft)
        && draft
            .policy
            .get_valid_request_envs(schema)
            .any(|request| request.principal().basename() == "Agent")
}

fn build(
    drafts: &[Draft<'_>],
    world: &World<'_>,
    generated: GeneratedSchema,
    schema: &Schema,
) -> anyhow::Result<Policies> {
    let types = Types::new()?;
    let entities = world::entities(world, &types, schema)?;
    let mut slices = Slices::default();
    let mut texts = BTreeMap::new();
    let mut approvals = HashMap::new();
    for draft in drafts {
        slices.add(&draft.policy, draft.reads())?;
        let id = draft.policy.id().to_string();
        if let Some(tier) = draft.policy.annotation("approval") {
            approvals.insert(id.clone(), tier.to_owned());
        }
        texts.insert(id, draft.text.clone());
    }
    let mut tiers = HashMap::new();
    for tier in &world.tiers {
        tiers.insert(tier.name.clone(), types.uid("Tier", &tier.name)?);
    }
    let canonical = canonical(&texts, &generated.json);
    Ok(Policies {
        digest: format!("sha256:{}", json::sha256_hex(&canonical)),
        canonical,
        agents: parties(
            world
                .agents
                .iter()
                .map(|agent| (&agent.name, vec![("AgentGroup", &agent.groups)])),
            "Agent",
            &types,
            &slices,
        )?,
        operators: parties(
            world.operators.iter().map(|operator| {
                let parents = vec![
                    ("Role", &operator.roles),
                    ("OperatorGroup", &operator.groups),
                ];
                (&operator.name, parents)
            }),
            "Operator",
            &types,
            &slices,
        )?,
        tools: tools(world, &generated, &types, &slices)?,
        operator_actions: operator_actions(&types, &slices)?,
        gateway: types.uid("Gateway", GATEWAY)?,
        authorizer: Authorizer::new(),
        schema: generated.json,
        notes: generated.notes,
        texts,
        approvals,
        tiers,
        entities,
        slices,
    })
}

fn parties<'w>(
    members: impl Iterator<Item = (&'w String, Vec<(&'static str, &'w Vec<String>)>)>,
    kind: &str,
    types: &Types,
    slices: &Slices,
) -> anyhow::Result<HashMap<String, Party>> {
    let mut parties = HashMap::new();
    for (name, parents) in members {
        let uid = types.uid(kind, name)?;
        let mut parent_uids: Vec<EntityUid> = Vec::new();
        for (parent_kind, names) in parents {
            for parent in names {
                parent_uids.push(types.uid(parent_kind, parent)?);
            }
        }
        parent_uids.sort();
        parent_uids.dedup();
        let rows = slices.rows_of(&uid, parent_uids.iter());
        parties.insert(name.clone(), Party { uid, rows });
    }
    Ok(parties)
}

fn tools(
    world: &World<'_>,
    generated: &GeneratedSchema,
    types: &Types,
    slices: &Slices,
) -> anyhow::Result<HashMap<String, Callable>> {
    let mut tools = HashMap::new();
    for (tool, plan) in world.tools.iter().zip(&generated.plans) {
        let uid = types.uid("Action", tool.name)?;
        let groups = [
            types.uid("Action", &format!("{API_GROUP}{}", tool.api))?,
            types.uid(
                "Action",
                &format!("{CONSEQUENCE_GROUP}{}", tool.consequence),
            )?,
        ];
        let columns = slices.columns_of(&uid, groups.iter());
        let callable = Callable {
            uid,
            columns,
            api: tool.api.to_owned(),
            resource: types.uid("Api", tool.api)?,
            plan: plan.clone(),
        };
        tools.insert(tool.name.to_owned(), callable);
    }
    Ok(tools)
}

fn operator_actions(
    types: &Types,
    slices: &Slices,
) -> anyhow::Result<HashMap<OperatorAction, Acting>> {
    let mut actions = HashMap::new();
    for action in OperatorAction::ALL {
        let uid = types.uid("Action", action.as_str())?;
        let columns = slices.columns_of(&uid, std::iter::empty());
        actions.insert(action, Acting { uid, columns });
    }
    Ok(actions)
}

/// The RFC 8785 form of `{"policies": [[id, text], …], "schema": …}`, ordered by id: two sets have one such text, and
/// one digest, exactly when they have the same policies over the same contracts.
fn canonical(texts: &BTreeMap<String, String>, schema: &Value) -> String {
    let policies: Vec<_> = texts.iter().collect();
    let canonical = json::canonical(&json!({"policies": policies, "schema": schema}));
    String::from_utf8_lossy(&canonical).into_owned()
}
