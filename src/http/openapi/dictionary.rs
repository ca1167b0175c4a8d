//! Schemas of what is read straight from schema `audit`: a property for each column of the data dictionary, which is what the
//! comments in the database say. A test holds the dictionary against the database, so these cannot differ from it either.

use utoipa::openapi::{
    ArrayBuilder, Object, ObjectBuilder, RefOr, Schema,
    schema::{AdditionalProperties, KnownFormat, SchemaFormat, SchemaType, Type},
};

const DICTIONARY: &str = include_str!("../../audit/DICTIONARY.md");

/// A row of a view as one JSON object: each column is there, and may be null.
pub(in crate::http) fn row(of: &str) -> RefOr<Schema> {
    let (about, columns) = section(of);
    let object = columns
        .into_iter()
        .fold(described(about), |object, (name, kind, about)| {
            object
                .property(name, column(kind, about, true))
                .required(name)
        });
    closed(object)
}

/// A row of a table, only with its columns that are not null.
pub(in crate::http) fn filled(of: &str, always: &[&str]) -> RefOr<Schema> {
    let (about, columns) = section(of);
    let object = columns
        .into_iter()
        .fold(described(about), |object, (name, kind, about)| {
            let object = object.property(name, column(kind, about, false));
            if always.contains(&name) {
                object.required(name)
            } else {
                object
            }
        });
    closed(object)
}

/// The schema of a type that stands for a row of a view.
macro_rules! row_schema {
    ($type:ident, $of:literal) => {
        $crate::http::openapi::dictionary::made_of!(
            $type,
            $crate::http::openapi::dictionary::row($of)
        );
    };
}

/// The schema of a type that stands for a row of a table, with the columns that are always there.
macro_rules! filled_schema {
    ($type:ident, $of:literal, $always:expr) => {
        $crate::http::openapi::dictionary::made_of!(
            $type,
            $crate::http::openapi::dictionary::filled($of, &$always)
        );
    };
}

macro_rules! made_of {
    ($type:ident, $schema:expr) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $schema
            }
        }

        impl utoipa::ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
        }
    };
}

pub(in crate::http) use {filled_schema, made_of, row_schema};

fn described(about: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(about))
}

fn closed(object: ObjectBuilder) -> RefOr<Schema> {
    object
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .build()
        .into()
}

/// What the dictionary says of a view or table, and its columns: name, type, comment.
fn section(
    of: &str,
) -> (
    &'static str,
    Vec<(&'static str, &'static str, &'static str)>,
) {
    let heading = format!("## `{of}` (");
    let section = DICTIONARY
        .split("\n## ")
        .find(|section| {
            heading
                .strip_prefix("## ")
                .is_some_and(|heading| section.starts_with(heading))
        })
        .unwrap_or_default();
    let about = section
        .lines()
        .skip(1)
        .find(|line| !line.is_empty() && !line.starts_with('|'))
        .unwrap_or_default();
    let columns = section
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.splitn(3, " | ");
            let name = cells.next()?.strip_suffix('`')?;
            let kind = cells.next()?;
            let about = cells.next()?.strip_suffix(" |").unwrap_or_default();
            Some((name, kind, about))
        })
        .collect();
    (about, columns)
}

fn column(kind: &str, about: &str, may_be_null: bool) -> Schema {
    let object = ObjectBuilder::new().description(Some(about));
    let of = |kind: Type| -> SchemaType {
        if may_be_null {
            SchemaType::from_iter([kind, Type::Null])
        } else {
            kind.into()
        }
    };
    let object: Object = match kind {
        "jsonb" => object.schema_type(SchemaType::AnyValue).build(),
        "boolean" => object.schema_type(of(Type::Boolean)).build(),
        "smallint" | "integer" | "bigint" => object.schema_type(of(Type::Integer)).build(),
        "timestamp with time zone" => object
            .schema_type(of(Type::String))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .build(),
        list if list.ends_with("[]") => {
            let items = ObjectBuilder::new().schema_type(Type::String);
            return ArrayBuilder::new()
                .schema_type(of(Type::Array))
                .description(Some(about))
                .items(items)
                .into();
        }
        _ => object.schema_type(of(Type::String)).build(),
    };
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_view_and_table_that_is_shown_has_its_columns() {
        for (of, column) in [
            ("audit.entries", "value_tokens"),
            ("audit.calls", "votes"),
            ("audit.runs", "purpose"),
            ("audit.approvals", "decided_by"),
            ("audit.halts", "pulled_by"),
        ] {
            let schema = serde_json::to_value(row(of)).unwrap();
            assert_eq!(schema["additionalProperties"], false, "{of}");
            assert!(
                schema["properties"][column]["description"].is_string(),
                "{of}"
            );
            assert!(schema["required"].as_array().unwrap().len() > 10, "{of}");
        }
    }
}
