import { type DestinationStream, destination as fileDestination, type Logger, pino } from 'pino';
import { isCoded } from './errors.ts';

export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';

/** Structured log: `log.info({ ref }, 'published')`. `log.child({ part: 'host' })` adds members to every line. */
export type Log = Pick<Logger, 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal'> & {
  child(bindings: Record<string, unknown>): Log;
};

const REDACTED = '[redacted]';
/** Compared without case, `-` and `_`; also as the end of a longer name, for example `sessionToken`. */
const SECRET =
  /(passphrase|password|token|secret|secretkey|privatekey|authorization|cookie|credential|credentials|apikey)$/;
const LIMITS = { depthMax: 6, membersMax: 100, textLengthMax: 8_192 } as const;

/**
 * JSON lines with `time` (milliseconds since the epoch), `level` and `msg`, to standard error unless told otherwise.
 * Values whose name says secret are replaced at any depth; long texts, long lists and deep values are cut.
 */
export function createLog(options: { readonly level?: LogLevel; readonly destination?: DestinationStream } = {}): Log {
  const logger = pino(
    {
      level: options.level ?? 'info',
      base: null,
      formatters: {
        level: (level) => ({ level }),
        log: (members) => scrub(members, 0) as Record<string, unknown>,
      },
      serializers: { err: (error: unknown) => error, error: (error: unknown) => error },
    },
    // Synchronous, so that the last line before a crash is there.
    options.destination ?? fileDestination({ fd: 2, sync: true }),
  );
  const { child } = logger;
  // Children inherit it. What a child carries passes no formatter, so it is scrubbed here.
  return Object.assign(logger, {
    child(this: typeof logger, bindings: Record<string, unknown>): Log {
      return child.call(this, scrub(bindings, 0) as Record<string, unknown>);
    },
  });
}

function scrub(value: unknown, depth: number): unknown {
  if (typeof value === 'string') {
    return value.length > LIMITS.textLengthMax ? `${value.slice(0, LIMITS.textLengthMax)}…` : value;
  }
  if (typeof value === 'bigint') return value.toString();
  if (typeof value !== 'object' || value === null) return value;
  if (depth >= LIMITS.depthMax) return '[deep]';
  if (value instanceof Error) return scrubError(value, depth);
  if (value instanceof Date) return value.toISOString();
  // Bytes may be a key; their number says enough.
  if (ArrayBuffer.isView(value)) return `[${value.byteLength} bytes]`;
  if (Array.isArray(value)) return value.slice(0, LIMITS.membersMax).map((member) => scrub(member, depth + 1));
  const out: Record<string, unknown> = {};
  for (const [key, member] of Object.entries(value).slice(0, LIMITS.membersMax)) {
    out[key] = SECRET.test(key.toLowerCase().replace(/[-_]/g, '')) ? REDACTED : scrub(member, depth + 1);
  }
  return out;
}

function scrubError(error: Error, depth: number): Record<string, unknown> {
  const { name, message, stack, cause } = error;
  return {
    name,
    message: scrub(message, depth + 1),
    ...(isCoded(error) ? { code: error.code, hint: error.hint, details: scrub(error.details, depth + 1) } : {}),
    ...(typeof (error as NodeJS.ErrnoException).code === 'string' && !isCoded(error)
      ? { code: (error as NodeJS.ErrnoException).code }
      : {}),
    stack: scrub(stack, depth + 1),
    ...(cause === undefined ? {} : { cause: scrub(cause, depth + 1) }),
  };
}
