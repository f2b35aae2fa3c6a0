-- Orthanc sends each study to the node "medopt" when nothing was added to it for StableAge seconds.
-- Reports are left out: the reports that the node sends back make the study stable a second time. The node acknowledges
-- instances that it already has, and does not answer them again. Orthanc does not repeat a job that failed: see
-- /jobs/{id}/resubmit, or let the node fetch what it lacks (`pull` in node.yaml).
local left_out = {SR = true, PR = true, KO = true, SEG = true}

function OnStableStudy(study, tags, metadata)
   local series = {}
   for _, entry in ipairs(ParseJson(RestApiGet('/studies/' .. study .. '/series', false))) do
      if not left_out[entry['MainDicomTags']['Modality']] then
         table.insert(series, entry['ID'])
      end
   end
   if #series > 0 then
      RestApiPost('/modalities/medopt/store', DumpJson({Resources = series, Asynchronous = true}, true), false)
   end
end
