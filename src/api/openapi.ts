import { z } from 'zod';
import { NDJSON, PROBLEM } from '../wire/http.ts';
import type { AnyRoute } from './route.ts';

/** The API as OpenAPI 3.1, from the same definitions that serve it. `docs/openapi.json` is this, kept current by a test. */
export function openApi(routes: readonly AnyRoute[], version: string): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const definition of routes) {
    const path = definition.path.replaceAll(/:(\w+)/g, '{$1}');
    paths[path] ??= {};
    paths[path][definition.method.toLowerCase()] = operation(definition);
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'HyperMesh node',
      version,
      description: 'The HTTP API of a node. docs/protocol/http.md explains tokens, long operations, errors and limits.',
    },
    paths,
    components: {
      securitySchemes: { token: { type: 'http', scheme: 'bearer', description: 'The token in HOME/node.json.' } },
      schemas: { Problem: PROBLEM_SCHEMA },
    },
  };
}

const PROBLEM_SCHEMA = {
  type: 'object',
  description: 'RFC 9457 problem document; docs/errors.md lists the codes.',
  required: ['type', 'title', 'status', 'detail', 'code', 'message'],
  properties: {
    type: { type: 'string' },
    title: { type: 'string' },
    status: { type: 'integer' },
    detail: { type: 'string' },
    code: { type: 'string' },
    message: { type: 'string' },
    hint: { type: 'string' },
    details: { type: 'object' },
  },
};

function operation(definition: AnyRoute): object {
  const body = requestBody(definition);
  return {
    summary: definition.summary,
    ...(definition.access === 'token' ? { security: [{ token: [] }] } : {}),
    parameters: [
      ...(definition.kind === 'json' ? parameters('path', definition.params) : []),
      ...parameters('query', definition.query),
    ],
    ...(body === undefined ? {} : { requestBody: { required: true, content: body } }),
    responses: {
      200: { description: 'Done.', content: answer(definition) },
      default: {
        description: 'Refused or failed.',
        content: { [PROBLEM]: { schema: { $ref: '#/components/schemas/Problem' } } },
      },
    },
  };
}

function answer(definition: AnyRoute): object {
  if (definition.kind === 'stream' && definition.sends !== undefined) return { [definition.sends]: {} };
  return { 'application/json': {}, ...(definition.long === true ? { [NDJSON]: {} } : {}) };
}

function requestBody(definition: AnyRoute): object | undefined {
  if (definition.kind === 'stream') return definition.accepts === undefined ? undefined : { [definition.accepts]: {} };
  return definition.body === undefined ? undefined : { 'application/json': { schema: toSchema(definition.body) } };
}

function parameters(place: 'path' | 'query', schema: z.ZodType | undefined): object[] {
  if (schema === undefined) return [];
  const { properties = {} } = toSchema(schema) as { properties?: Record<string, object> };
  return Object.entries(properties).map(([name, member]) => ({
    name,
    in: place,
    ...(place === 'path' ? { required: true } : {}),
    schema: member,
  }));
}

/** What a client sends. Checks that JSON Schema cannot say are left out. */
function toSchema(schema: z.ZodType): object {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' });
  return rest;
}
