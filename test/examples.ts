import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** A fenced block of a page of documentation. */
export interface Example {
  /** Path of the page from the root of the project. */
  readonly page: string;
  readonly line: number;
  readonly language: string;
  readonly text: string;
}

/** Every fenced block of README.md and the pages below docs/. */
export function examples(root: string): readonly Example[] {
  const pages = readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.md'))
    .map((path) => `docs/${path}`);
  return ['README.md', ...pages].flatMap((page) => blocksOf(page, readFileSync(join(root, page), 'utf8')));
}

function blocksOf(page: string, markdown: string): readonly Example[] {
  return [...markdown.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map((match) => ({
    page,
    line: markdown.slice(0, match.index).split('\n').length + 1,
    language: match[1]!,
    text: match[2]!,
  }));
}
