import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';

/**
 * `HOME/node.json` (docs/protocol/node-file.md): how the commands of this user reach the node that runs.
 * Written with mode 0600 when the node answers, removed when it stops; a crash leaves it behind, so a reader must also ask the node.
 */
const nodeFile = z.strictObject({
  formatVersion: z.literal(1),
  pid: z.int().positive(),
  /** Base URL of the API, for example `http://127.0.0.1:40123`. */
  http: z.url({ protocol: /^http$/ }).max(300),
  /** Bearer token: random for each start, 43 characters of base64url. */
  token: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
  startedAtMs: z.int().nonnegative(),
  version: z.string().max(64),
});

export type NodeFile = z.infer<typeof nodeFile>;

const CHARACTERS_MAX = 4_096;

export function encodeNodeFile(file: NodeFile): string {
  return `${JSON.stringify(nodeFile.parse(file), null, 2)}\n`;
}

/** Errors: `config-invalid`. */
export function decodeNodeFile(text: string): NodeFile {
  const parsed = text.length > CHARACTERS_MAX ? undefined : nodeFile.safeParse(parseJson(text));
  if (parsed?.success === true) return parsed.data;
  const issue = parsed?.error.issues[0];
  const why = issue === undefined ? 'it is too long' : `${issue.path.join('.') || 'content'}: ${issue.message}`;
  throw new HyperMeshError('config-invalid', `node.json is damaged: ${why}.`, {
    hint: 'Stop the node, remove node.json from its home, and start it again.',
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
