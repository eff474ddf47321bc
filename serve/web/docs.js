// Draws /openapi.json as a page, with nothing loaded from elsewhere.

const root = document.getElementById("docs");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function table(names, rows) {
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col", textContent: name })));
  const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("div", { className: "scroll" }, made);
}

function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
}

const code = (text) => element("code", { textContent: text });

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  const either = schema.anyOf ?? schema.oneOf;
  if (either) return either.map(typeOf).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  return schema.type ?? "anything";
}

function limitsOf(schema) {
  const names = { minimum: "≥", maximum: "≤", minLength: "length ≥", maxLength: "length ≤", minItems: "entries ≥", maxItems: "entries ≤" };
  const parts = [schema, ...(schema.anyOf ?? [])];
  return parts.flatMap((part) => Object.entries(names).filter(([key]) => Math.abs(part[key]) < 1e15).map(([key, sign]) => `${sign} ${part[key]}`)).join(", ");
}

function parameterRow(parameter) {
  const { schema } = parameter;
  const fallback = schema.default === undefined ? (parameter.required ? "required" : "") : JSON.stringify(schema.default);
  return row(code(parameter.name), parameter.in, typeOf(schema), limitsOf(schema), fallback, parameter.description ?? schema.description ?? "");
}

function operation(path, method, details) {
  const method_ = element("span", { className: "method", textContent: method.toUpperCase() });
  const summary = element("summary", {}, method_, code(path), element("span", { textContent: details.description ?? details.summary ?? "" }));
  const made = element("details", { className: "operation", open: true }, summary);
  if (details.parameters?.length) {
    made.append(table(["parameter", "in", "type", "limits", "default", ""], details.parameters.map(parameterRow)));
  }
  const body = details.requestBody?.content?.["application/json"];
  if (body) made.append(element("p", {}, "Body: ", code(typeOf(body.schema))), ...examples(body.examples, method, path));
  for (const [status, response] of Object.entries(details.responses)) {
    const content = Object.entries(response.content ?? {})[0];
    made.append(element("p", {}, `${status}: `, code(content ? typeOf(content[1].schema) : ""), content ? ` (${content[0]})` : ""));
  }
  return made;
}

function examples(all, method, path) {
  return Object.values(all ?? {}).flatMap(({ summary, value }) => {
    const command = `curl -s ${location.origin}${path} -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(value)}'`;
    return [element("h3", { textContent: summary }), element("pre", { textContent: command })];
  });
}

function schemaSection(name, schema) {
  const fields = Object.entries(schema.properties ?? {}).map(([field, part]) => {
    const needed = schema.required?.includes(field) ? "required" : part.default == null ? "" : JSON.stringify(part.default);
    return row(code(field), typeOf(part), limitsOf(part), needed, part.description ?? "");
  });
  const heading = element("h3", { id: name, textContent: name });
  return [heading, element("p", { className: "quiet", textContent: schema.description ?? "" }), table(["field", "type", "limits", "default", ""], fields)];
}

function problemRow([name, { status, title }]) {
  const made = row(code(name), String(status), title);
  made.id = `problem-${name}`;
  return made;
}

const api = await (await fetch("/openapi.json")).json();
const operations = Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, details]) => operation(path, method, details)));
root.append(
  element("h1", { textContent: `${api.info.title} API` }),
  element("p", { textContent: api.info.description ?? "" }),
  ...operations,
  element("h2", { textContent: "Shapes" }),
  ...Object.entries(api.components.schemas).flatMap(([name, schema]) => schemaSection(name, schema)),
  element("h2", { textContent: "Problems" }),
  table(["code", "status", "title"], Object.entries(api["x-problems"]).map(problemRow)),
);
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
