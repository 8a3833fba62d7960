/** Messages between a host and a cell (docs/protocol/cell.md). Checked by hand, because a cell can read no library. */

/** Of one frame, header not counted. Content goes by stream in pieces of at most 1 MiB. */
export const CELL_FRAME_BYTES_MAX = 16 * 2 ** 20;
/** Calls of one side that the other is working on. */
export const CELL_CALLS_MAX = 1_024;
/** Streams that one side may have open at the other. */
export const CELL_STREAMS_MAX = 256;
/** Items of one stream that may be under way before the reader asks for more. */
export const CELL_WINDOW = 4;
const ARGS_MAX = 8;
const NAME_LENGTH_MAX = 128;

/** An argument or a result: plain data, the number of a stream, or call options without what cannot travel. */
export type CellParcel =
  | { readonly data: unknown }
  | { readonly stream: number }
  | { readonly options: unknown; readonly signal: boolean; readonly progress: boolean };

export type CellMessage =
  | readonly ['call', call: number, target: string, method: string, args: readonly CellParcel[]]
  | readonly ['done', call: number, result: CellParcel]
  | readonly ['fail', call: number, problem: CellProblem]
  | readonly ['cancel', call: number]
  | readonly ['progress', call: number, progress: { readonly [key: string]: unknown }]
  | readonly ['pull', stream: number, items: number]
  | readonly ['item', stream: number, value: unknown]
  | readonly ['end', stream: number, problem: CellProblem | null]
  | readonly ['stop', stream: number];

/** A problem document whose code is not checked yet. */
export interface CellProblem {
  readonly code: string;
  readonly message: string;
}

/** Throws a TypeError that says what was expected; the border ends then. */
export function decodeCellMessage(value: unknown): CellMessage {
  expect(Array.isArray(value), 'a list');
  const message = value as unknown[];
  const [kind, id, first, second, third] = message;
  expect(isNumber(id), 'a number of a call or a stream');
  const length = (n: number) => expect(message.length === n, `${n} members in ${String(kind).slice(0, 16)}`);
  switch (kind) {
    case 'call':
      length(5);
      expect(isName(first) && isName(second), 'names of a target and a method');
      expect(
        Array.isArray(third) && third.length <= ARGS_MAX && third.every(isParcel),
        `at most ${ARGS_MAX} arguments`,
      );
      break;
    case 'done':
      length(3);
      expect(isParcel(first) && !('options' in first), 'a result');
      break;
    case 'fail':
      length(3);
      expect(isProblem(first), 'a problem');
      break;
    case 'cancel':
    case 'stop':
      length(2);
      break;
    case 'progress':
      length(3);
      expect(isObject(first), 'progress');
      break;
    case 'pull':
      length(3);
      expect(isNumber(first) && first > 0 && first <= CELL_WINDOW, `1 to ${CELL_WINDOW} items`);
      break;
    case 'item':
      length(3);
      break;
    case 'end':
      length(3);
      expect(first === null || isProblem(first), 'a problem or null');
      break;
    default:
      expect(false, 'a known kind of message');
  }
  return value as CellMessage;
}

function isParcel(value: unknown): value is CellParcel {
  if (!isObject(value)) return false;
  const keys = Object.keys(value).toSorted().join();
  if (keys === 'data') return true;
  if (keys === 'stream') return isNumber(value['stream']);
  return (
    keys === 'options,progress,signal' && typeof value['signal'] === 'boolean' && typeof value['progress'] === 'boolean'
  );
}

function isProblem(value: unknown): value is CellProblem {
  return isObject(value) && typeof value['code'] === 'string' && typeof value['message'] === 'string';
}

function isObject(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === 'object' && !Array.isArray(value);
}

function isNumber(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isName(value: unknown): value is string {
  return typeof value === 'string' && value.length > 0 && value.length <= NAME_LENGTH_MAX;
}

function expect(holds: boolean, what: string): void {
  if (!holds) throw new TypeError(`expected ${what}`);
}
