import { HyperMeshError } from '../../base/errors.ts';

const PATTERN_LENGTH_MAX = 256;

/**
 * A test for a pattern in which `*` stands for any run of characters.
 * Takes time proportional to text x pattern at worst, so a hostile pattern cannot stall the process. Errors: `usage`.
 */
export function matcher(pattern: string): (text: string) => boolean {
  if (typeof pattern !== 'string' || pattern.length > PATTERN_LENGTH_MAX) {
    throw new HyperMeshError('usage', `A pattern must be a text of at most ${PATTERN_LENGTH_MAX} characters.`);
  }
  const [head = '', ...rest] = pattern.split('*');
  if (rest.length === 0) return (text) => text === pattern;
  const tail = rest.pop() ?? '';
  return (text) => {
    if (!text.startsWith(head) || text.length < head.length + tail.length || !text.endsWith(tail)) return false;
    const end = text.length - tail.length;
    let at = head.length;
    for (const part of rest) {
      const found = text.indexOf(part, at);
      if (found < 0 || found + part.length > end) return false;
      at = found + part.length;
    }
    return true;
  };
}
