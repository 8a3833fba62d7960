import type { CallOptions } from '../../base/call.ts';
import type { Json } from '../../base/json.ts';

/** Brackets inside brackets that a result may have. */
const DEPTH_MAX = 512;

/** What a program printed: JSON, or else text. */
export function parseOutput(bytes: Buffer): { output: Json; text: string | null } {
  const printed = bytes.toString('utf8');
  if (printed.trim() === '') return { output: null, text: null };
  if (depthOf(printed) <= DEPTH_MAX) {
    try {
      return { output: JSON.parse(printed) as Json, text: null };
    } catch {
      // not JSON
    }
  }
  return { output: null, text: visible(printed) };
}

function depthOf(json: string): number {
  let depth = 0;
  let deepest = 0;
  let inString = false;
  for (let at = 0; at < json.length; at++) {
    const char = json[at];
    if (inString) {
      if (char === '\\') at += 1;
      else if (char === '"') inString = false;
    } else if (char === '"') {
      inString = true;
    } else if (char === '[' || char === '{') {
      depth += 1;
      deepest = Math.max(deepest, depth);
    } else if (char === ']' || char === '}') {
      depth -= 1;
    }
  }
  return deepest;
}

/** Control characters (but newline and tab) and direction overrides, which could forge what a terminal shows. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

export function visible(text: string): string {
  return text.replace(HIDDEN, (char) => {
    const code = char.charCodeAt(0);
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u${code.toString(16).padStart(4, '0')}`;
  });
}

/** One report holds at most so much; more is several. */
const LOG_BYTES_MAX = 8 * 1024;

/** Passes on what a program writes on standard error while it runs. Whoever does not listen costs nothing. */
export function logTo(onProgress: CallOptions['onProgress']): (bytes: Uint8Array) => void {
  if (onProgress === undefined) return () => {};
  const decoder = new TextDecoder();
  return (bytes) => {
    for (let at = 0; at < bytes.length; at += LOG_BYTES_MAX) {
      const log = visible(decoder.decode(bytes.subarray(at, at + LOG_BYTES_MAX), { stream: true }));
      if (log !== '') onProgress({ step: 'run', log });
    }
  };
}
