// Puts the templates of this extension in the order of their numbers; the server lists them as they lie on its disk.

import { api } from "../../../scripts/api.js"

// The page's address of this file is .../extensions/FOLDER/js/templates.js.
const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3))
const { getWorkflowTemplates } = api

api.getWorkflowTemplates = async function (...given) {
  const templates = await getWorkflowTemplates.apply(this, given)
  templates[FOLDER]?.sort()
  return templates
}
