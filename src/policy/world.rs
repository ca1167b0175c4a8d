//! What the policies talk about: the tools, agents, operators and tiers of one configuration, as Cedar
//! entities.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cedar_policy::{
    Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema,
};

use crate::{call::Consequence, quorum::Member};

/// The id of the one `Gateway` entity.
pub const GATEWAY: &str = "toolgate";

/// A tool as far as policies are concerned.
#[derive(Debug, Clone, Copy)]
pub struct ToolShape<'a> {
    /// The tool's name, which becomes its action: `desk.refunds.create`.
    pub name: &'a str,
    /// The API it belongs to.
    pub api: &'a str,
    /// What its call does to the world.
    pub consequence: Consequence,
    /// JSON Schema 2020-12 of the arguments, an object at its root.
    pub input: &'a serde_json::Value,
}

/// An agent and the groups that policies may name it by.
#[derive(Debug, Clone)]
pub struct AgentShape {
    /// The agent's name.
    pub name: String,
    /// Names of `AgentGroup` entities; naming one here creates it.
    pub groups: Vec<String>,
}

/// An operator with their roles and groups.
#[derive(Debug, Clone)]
pub struct OperatorShape {
    /// The operator's name.
    pub name: String,
    /// Names of `Role` entities; naming one here creates it.
    pub roles: Vec<String>,
    /// Names of `OperatorGroup` entities; naming one here creates it.
    pub groups: Vec<String>,
}

/// A tier of approval and those who answer for it.
#[derive(Debug, Clone)]
pub struct TierShape {
    /// The tier's name, as `@approval` and `context.approvals` have it.
    pub name: String,
    /// Whom its requirements name: the values of the tier's attributes `roles` and `groups`.
    pub members: Vec<Member>,
}

impl TierShape {
    fn roles(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter_map(|member| match member {
            Member::Role(role) => Some(role.as_str()),
            Member::Group(_) => None,
        })
    }

    fn groups(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter_map(|member| match member {
            Member::Group(group) => Some(group.as_str()),
            Member::Role(_) => None,
        })
    }
}

/// Everything a policy may name.
#[derive(Debug, Clone, Default)]
pub struct World<'a> {
    /// Every tool, each name once.
    pub tools: Vec<ToolShape<'a>>,
    /// Every agent, each name once.
    pub agents: Vec<AgentShape>,
    /// Every operator, each name once.
    pub operators: Vec<OperatorShape>,
    /// Every tier, each name once.
    pub tiers: Vec<TierShape>,
    /// Every API, also those without tools.
    pub apis: Vec<String>,
}

impl World<'_> {
    /// The names that exist, by entity type.
    pub(super) fn names(&self) -> BTreeMap<&'static str, BTreeSet<&str>> {
        let agents = self.agents.iter();
        let operators = self.operators.iter();
        let tool_apis = self.tools.iter().map(|tool| tool.api);
        let tier_roles = self.tiers.iter().flat_map(TierShape::roles);
        let tier_groups = self.tiers.iter().flat_map(TierShape::groups);
        BTreeMap::from([
            (
                "Agent",
                agents.clone().map(|agent| agent.name.as_str()).collect(),
            ),
            (
                "AgentGroup",
                agents
                    .flat_map(|agent| agent.groups.iter().map(String::as_str))
                    .collect(),
            ),
            (
                "Api",
                self.apis
                    .iter()
                    .map(String::as_str)
                    .chain(tool_apis)
                    .collect(),
            ),
            (
                "Operator",
                operators
                    .clone()
                    .map(|operator| operator.name.as_str())
                    .collect(),
            ),
            (
                "OperatorGroup",
                operators
                    .clone()
                    .flat_map(|operator| operator.groups.iter().map(String::as_str))
                    .chain(tier_groups)
                    .collect(),
            ),
            (
                "Role",
                operators
                    .flat_map(|operator| operator.roles.iter().map(String::as_str))
                    .chain(tier_roles)
                    .collect(),
            ),
            (
                "Tier",
                self.tiers.iter().map(|tier| tier.name.as_str()).collect(),
            ),
            ("Gateway", BTreeSet::from([GATEWAY])),
        ])
    }
}

/// The entity types, parsed once: parsing a name costs more than a decision should.
#[derive(Debug, Clone)]
pub(super) struct Types(HashMap<&'static str, EntityTypeName>);

/// A name that Cedar does not take for a type; none of ours is one.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an entity type")]
pub(super) struct UnknownType(String);

impl Types {
    pub(super) fn new() -> Result<Self, UnknownType> {
        let names = [
            "Action",
            "Agent",
            "AgentGroup",
            "Api",
            "Operator",
            "OperatorGroup",
            "Role",
            "Tier",
            "Gateway",
        ];
        let mut types = HashMap::new();
        for name in names {
            let parsed = name.parse().map_err(|_| UnknownType(name.to_owned()))?;
            types.insert(name, parsed);
        }
        Ok(Self(types))
    }

    /// The entity of this type and id, whatever characters the id holds.
    pub(super) fn uid(&self, type_name: &str, id: &str) -> Result<EntityUid, UnknownType> {
        let found = self
            .0
            .get(type_name)
            .ok_or_else(|| UnknownType(type_name.to_owned()))?;
        Ok(EntityUid::from_type_name_and_id(
            found.clone(),
            EntityId::new(id),
        ))
    }
}

/// Why the entities of a world could not be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorldError {
    #[error(transparent)]
    Type(#[from] UnknownType),
    #[error("an entity's attribute cannot be evaluated")]
    Attribute(#[from] Box<cedar_policy::EntityAttrEvaluationError>),
    #[error("the entities contradict each other or the schema")]
    Entities(#[from] Box<cedar_policy::entities_errors::EntitiesError>),
}

/// The entities of the world; the actions come from the schema.
pub(super) fn entities(
    world: &World<'_>,
    types: &Types,
    schema: &Schema,
) -> Result<Entities, WorldError> {
    let mut all: Vec<Entity> = Vec::new();
    for (type_name, ids) in world.names() {
        if matches!(type_name, "Agent" | "Operator" | "Tier") {
            continue;
        }
        for id in ids {
            all.push(Entity::with_uid(types.uid(type_name, id)?));
        }
    }
    for agent in &world.agents {
        all.push(member(
            types,
            ("Agent", &agent.name),
            &[("AgentGroup", &agent.groups)],
        )?);
    }
    for operator in &world.operators {
        all.push(member(
            types,
            ("Operator", &operator.name),
            &[
                ("Role", &operator.roles),
                ("OperatorGroup", &operator.groups),
            ],
        )?);
    }
    for tier in &world.tiers {
        let attributes = HashMap::from([
            ("roles".to_owned(), set(types, "Role", tier.roles())?),
            (
                "groups".to_owned(),
                set(types, "OperatorGroup", tier.groups())?,
            ),
        ]);
        let tier = Entity::new(types.uid("Tier", &tier.name)?, attributes, HashSet::new());
        all.push(tier.map_err(Box::new)?);
    }
    Ok(Entities::from_entities(all, Some(schema)).map_err(Box::new)?)
}

fn set<'a>(
    types: &Types,
    kind: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<RestrictedExpression, UnknownType> {
    let names: Result<Vec<_>, _> = names
        .map(|name| Ok(RestrictedExpression::new_entity_uid(types.uid(kind, name)?)))
        .collect();
    Ok(RestrictedExpression::new_set(names?))
}

fn member(
    types: &Types,
    (kind, name): (&str, &str),
    parents: &[(&str, &[String])],
) -> Result<Entity, UnknownType> {
    let parents: Result<HashSet<_>, _> = parents
        .iter()
        .flat_map(|(kind, names)| names.iter().map(|name| types.uid(kind, name)))
        .collect();
    Ok(Entity::new_no_attrs(types.uid(kind, name)?, parents?))
}
