import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';

/** What happened, in the order in which it became durable (docs/protocol/events.md). */

export const severity = z.enum(['info', 'warning', 'error', 'critical']);
export type Severity = z.infer<typeof severity>;

export interface EventDraft {
  /** Dotted type, for example `catalog.published`: lower-case words, at most 128 characters. */
  readonly type: string;
  readonly severity?: Severity;
  /** At most 64 KiB as JSON text. */
  readonly data: Json;
}

export interface Event {
  /** Strictly increasing; a reader resumes after the last one it saw. */
  readonly sequence: number;
  readonly atMs: number;
  readonly type: string;
  readonly severity: Severity;
  /** Who emitted it: the id of an extension, or of a subsystem. */
  readonly source: string;
  readonly data: Json;
}

export const EVENT_LIMITS = { typeLengthMax: 128, sourceLengthMax: 128, dataBytesMax: 65_536 } as const;

const dotted = /^[a-z][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*$/;

const eventType = z.string().max(EVENT_LIMITS.typeLengthMax).regex(dotted, 'expected dotted words in lower case');
const eventSource = z.string().max(EVENT_LIMITS.sourceLengthMax).regex(dotted, 'expected dotted words in lower case');

const draftSchema = z.strictObject({ type: eventType, severity: severity.default('info'), data: z.unknown() });

const eventSchema = z.strictObject({
  sequence: z.int().positive(),
  atMs: z.int().nonnegative(),
  type: eventType,
  severity,
  source: eventSource,
  // It comes out of JSON.parse, so only its absence can be wrong.
  data: z.custom<Json>((value) => value !== undefined, 'expected JSON'),
});

/** Checks a draft and prints its data. Errors: `usage`, `limit-exceeded` when the data is too large. */
export function parseEventDraft(draft: EventDraft): { type: string; severity: Severity; dataText: string } {
  const parsed = draftSchema.safeParse(draft);
  if (!parsed.success) throw new HyperMeshError('usage', `An event is not valid: ${firstIssue(parsed.error)}`);
  const dataText = jsonText(parsed.data.data);
  const size = Buffer.byteLength(dataText);
  if (size > EVENT_LIMITS.dataBytesMax) {
    throw new HyperMeshError(
      'limit-exceeded',
      `The data of an event has ${size} bytes; at most ${EVENT_LIMITS.dataBytesMax} are allowed.`,
      { hint: 'Put the bulk into the content store and its digest into the event.' },
    );
  }
  return { type: parsed.data.type, severity: parsed.data.severity, dataText };
}

/**
 * One event as a message of a server-sent event stream; a browser hands its `id` back as `Last-Event-ID`.
 * Without a name of its own, so that one `onmessage` sees every type.
 */
export function encodeEvent(event: Event): string {
  return `id: ${event.sequence}\ndata: ${JSON.stringify(event)}\n\n`;
}

/** Reads the `data` line of such a message. Errors: `usage`. */
export function decodeEvent(text: string): Event {
  if (text.length > 2 * EVENT_LIMITS.dataBytesMax) throw new HyperMeshError('usage', 'An event is too large.');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new HyperMeshError('usage', 'An event is not JSON.', { cause: error });
  }
  const parsed = eventSchema.safeParse(value);
  if (!parsed.success) throw new HyperMeshError('usage', `An event is not valid: ${firstIssue(parsed.error)}`);
  return parsed.data;
}

function jsonText(value: unknown): string {
  try {
    const text = JSON.stringify(value);
    if (typeof text === 'string') return text;
  } catch (error) {
    // A cycle, a bigint, or nesting deeper than the stack.
    throw new HyperMeshError('usage', 'The data of an event must be plain JSON.', { cause: error });
  }
  throw new HyperMeshError('usage', 'The data of an event must be plain JSON, but nothing was given.');
}

function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  return `${issue?.path.join('.') || 'event'}: ${issue?.message ?? 'unknown'}.`;
}
