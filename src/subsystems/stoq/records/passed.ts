import type { Digest } from '../../../base/digest.ts';

/** Records that are not taken again, because they were refused or others count in their place. Of too many the oldest are forgotten, and may be judged once more. */
export class Passed {
  readonly #ids = new Set<Digest>();
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  has(id: Digest): boolean {
    return this.#ids.has(id);
  }

  add(id: Digest): void {
    this.#ids.add(id);
    if (this.#ids.size > this.#max) this.#ids.delete(this.#ids.values().next().value!);
  }
}
