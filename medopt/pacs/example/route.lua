-- Orthanc sends each study to the node "medopt" once nothing was added to it for StableAge seconds.
-- Reports are left out: those that the node sends back make the study stable a second time. What the node has already
-- it acknowledges without working again. A job that fails is not repeated by Orthanc: see /jobs/{id}/resubmit, or let
-- the node ask for what it lacks (`pull` in node.yaml).
local left_out = {SR = true, PR = true, KO = true, SEG = true}

function OnStableStudy(study, tags, metadata)
   local series = {}
   for _, one in ipairs(ParseJson(RestApiGet('/studies/' .. study .. '/series', false))) do
      if not left_out[one['MainDicomTags']['Modality']] then
         table.insert(series, one['ID'])
      end
   end
   if #series > 0 then
      RestApiPost('/modalities/medopt/store', DumpJson({Resources = series, Asynchronous = true}, true), false)
   end
end
